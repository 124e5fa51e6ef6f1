"""Two models' answers to the same inputs, and the policies that ask for them to agree."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.contracts.contract import OutputSpec, Task
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import Policy, check_policy
from edgekit.contracts.shadow import Shadow, Split
from edgekit.stats.compare import agreeing


def _spec(task: Task, name: str = "y", *shape) -> OutputSpec:
    return OutputSpec(name=name, dtype="float32", shape=("n", *shape), task=task)


def _alike(task, before, after, **tolerance) -> list[bool]:
    limits = {"abs_max": 1e-3, "rel_max": 0.05} | tolerance
    arrays = ({"y": np.asarray(values, np.float32)} for values in (before, after))
    return agreeing([_spec(task)], *arrays, **limits).tolist()


def test_classes_agree_by_their_best_one_however_scores_move():
    before, after = [[0.9, 0.1], [0.6, 0.4]], [[0.51, 0.49], [0.4, 0.6]]
    assert _alike(Task.CLASSIFICATION, before, after) == [True, False]
    assert _alike(Task.CLASSIFICATION, before, [[np.nan, 1], [0.6, 0.4]]) == [False, True]


def test_numbers_agree_within_their_tolerance_and_nan_never_does():
    found = _alike(Task.REGRESSION, [[100.0], [100.0], [0.0], [1.0]], [[104], [106], [0], [np.nan]])
    assert found == [True, False, True, False]


def test_boxes_agree_when_they_overlap():
    box = [0, 0, 10, 10, 0.9, 1]
    near, far, other = [0, 0, 10, 9, 0.8, 1], [50, 50, 60, 60, 0.9, 1], [0, 0, 10, 10, 0.9, 2]
    none = [0, 0, 1, 1, 0.1, 1]
    before = [[box], [box], [box], [none]]
    assert _alike(Task.DETECTION, before, [[near], [far], [other], [none]]) == [
        True, False, False, True,
    ]  # fmt: skip


def test_other_outputs_of_a_classifier_may_move_and_missing_ones_never_agree():
    specs = [_spec(Task.OTHER, "hidden"), _spec(Task.CLASSIFICATION, "y", 2)]
    scores = np.array([[0.9, 0.1]], np.float32)
    before = {"y": scores, "hidden": np.zeros((1, 3), np.float32)}
    limits = {"abs_max": 0.0, "rel_max": 0.0}
    assert agreeing(specs, before, {"y": scores}, **limits).all()
    assert not agreeing(specs, before, {"hidden": before["hidden"]}, **limits).any()
    assert not agreeing(specs, before, {"y": scores[:, :1]}, **limits).any()


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(shadow=Shadow(share=0.0)), "shadow.share"),
        (Policy(shadow=Shadow(share=float("nan"))), "shadow.share"),
        (Policy(shadow=Shadow(inferences_min=0)), "shadow.inferences_min"),
        (Policy(shadow=Shadow(agreement_min=0.0)), "shadow.agreement_min"),
        (Policy(shadow=Shadow(rel=-1.0)), "shadow.rel"),
        (Policy(shadow=Shadow(late_ratio_max=1.0)), "shadow.late_ratio_max"),
        (Policy(shadow=Shadow(memory_bytes_min=-1)), "shadow.memory_bytes_min"),
        (Policy(shadow=Shadow(replay_bytes_max=10)), "shadow.replay_bytes_max"),
        (Policy(shadow=Shadow(unproven_after_s=1.0)), "shadow.unproven_after_s"),
        (Policy(split=Split(share=1.0)), "split.share"),
        (Policy(split=Split(), shadow=Shadow()), "split"),
    ],
)
def test_a_policy_that_cannot_be_obeyed_is_refused_when_written(policy, field):
    with pytest.raises(BadInputError, match=f"policy.{field}"):
        check_policy(policy)


def test_a_policy_travels_and_an_older_one_asks_for_neither():
    policy = check_policy(Policy(shadow=Shadow(agreement_min=0.97)))
    assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy
    assert msgspec.json.decode(b"{}", type=Policy).shadow is None
