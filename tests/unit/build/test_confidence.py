"""What a variant is right about at which confidence stands in its bundle."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.build import derive, reference
from edgekit.build.target import find
from edgekit.contracts import reference as contracts
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget, Task
from edgekit.contracts.errors import BadInputError
from edgekit.registry.model import Lineage, ModelVersion
from edgekit.stats.bins import CONFIDENCE_BINS

X = np.zeros((6, 1), np.float32)
SCORES = np.float32(
    [[0.92, 0.08], [0.93, 0.07], [0.06, 0.94], [0.62, 0.38], [1.0, 0.0], [np.nan, 0.0]]
)
LABELS = np.array([0, 1, 1, 1, 0, 0])  # right, wrong, right, wrong, right, no answer


def _contract(task: Task = Task.CLASSIFICATION) -> Contract:
    return Contract(
        inputs=(InputSpec(name="x", dtype="float32", shape=("n", 1)),),
        outputs=(OutputSpec(name="y", dtype="float32", shape=("n", 2), task=task),),
        quality=QualityBudget(metric="top1", drop_max=0.1),
    )


def _derived(labels, task=Task.CLASSIFICATION):
    found = reference.derive(_contract(task), {"x": X}, {"y": SCORES}, labels)
    assert found is not None
    return contracts.validate(found)


def test_right_answers_are_counted_by_confidence():
    found = _derived(LABELS)
    right, counts = found.confident_right, found.probes["confidence"]
    (sure,) = np.flatnonzero(CONFIDENCE_BINS.count(np.array([0.92])))
    (certain,) = np.flatnonzero(CONFIDENCE_BINS.count(np.array([1.0])))
    (unsure,) = np.flatnonzero(CONFIDENCE_BINS.count(np.array([0.62])))
    assert (counts[sure], right[sure]) == (3, 2)
    assert (counts[certain], right[certain]) == (1, 1)
    assert (counts[unsure], right[unsure]) == (1, 0)
    assert (sum(counts), sum(right)) == (5, 3)


@pytest.mark.parametrize("labels", [None, LABELS[:, None], LABELS.astype(np.float32)])
def test_without_labels_of_classes_nothing_is_said(labels):
    assert _derived(labels).confident_right is None


def test_other_outputs_have_no_confidence():
    assert _derived(LABELS, Task.REGRESSION).confident_right is None


@pytest.mark.parametrize("wrong", [(1,), (9,) * CONFIDENCE_BINS.size])
def test_more_right_than_there_are_is_refused(wrong):
    with pytest.raises(BadInputError, match="confident_right"):
        contracts.validate(msgspec.structs.replace(_derived(LABELS), confident_right=wrong))


def test_the_card_says_it():
    model = ModelVersion(
        name="m",
        version="1",
        digest="",
        created="",
        files=(),
        contract=_contract(),
        datasets=(),
        lineage=Lineage(source=""),
    )
    card = derive.card(model, find("x86-64-v3"), [], _derived(LABELS)).decode()
    rows = card[card.index("| confidence |") :].splitlines()[2:]
    assert rows == [
        "| 0.60 to 0.65 | 1 | 0.0% |",
        "| 0.90 to 0.95 | 3 | 66.7% |",
        "| 1.00 | 1 | 100.0% |",
    ]
    assert "confidence" not in derive.card(model, find("x86-64-v3"), []).decode()
