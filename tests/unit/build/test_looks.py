"""Looks at the evaluation data are paid for: the last that can prove anything is for floats."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgekit.build import select
from edgekit.build.candidates import FP32, Candidate, Scheme, with_layout
from edgekit.build.outcome import Trial
from edgekit.build.study import Artifact
from edgekit.build.variants import VariantBuilder
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget, Task
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit.stats import bounds
from edgekit.stats.bounds import Drop

BUDGET = QualityBudget(metric="top1", drop_max=0.01)
CONTRACT = Contract(
    inputs=(InputSpec(name="x", dtype="float32", shape=("n", 4)),),
    outputs=(OutputSpec(name="y", dtype="float32", shape=("n", 3), task=Task.CLASSIFICATION),),
    quality=BUDGET,
)


def _trial(candidate: Candidate) -> Trial:
    nothing = Drop(0.0, 0.0, 0.0, 100)
    figures = select.Figures(candidate, 10, nothing, None, nothing)
    return Trial(Artifact(None, candidate.name, 10), None, figures, 1.0)


class Finisher:
    """Nothing quantized passes; what is in float does, as long as the data can show it."""

    def __init__(self, n: int) -> None:
        self.looks: dict[str, int] = {}
        self._n = n

    def fails_unseen(self, *_):
        return None

    def finish(self, _target, trial, _original, *, look):
        candidate = trial.figures.candidate
        self.looks[candidate.name] = look
        needed = bounds.samples_to_resolve(BUDGET.drop_max, bounds.spent(BUDGET.confidence, look))
        good = candidate.scheme is Scheme.NONE and self._n >= needed
        verdict = Verdict(
            metric="top1_drop", outcome=Outcome.PASS if good else Outcome.FAIL, reason="why"
        )
        return SimpleNamespace(trial=trial, outcome=verdict.outcome, verdicts=(verdict,))


@pytest.mark.parametrize("n", [450, 700, 1043, 5000])
def test_floats_get_a_look_that_can_still_pass(n):
    finisher, records = Finisher(n), {}
    builder = VariantBuilder(
        SimpleNamespace(contract=CONTRACT, evaluation_n=n), None, None, None, None, finisher
    )
    ints = [Candidate(name=f"i{k}", precision="int8", scheme=Scheme.DYNAMIC) for k in range(20)]
    order = [_trial(each) for each in [*ints, with_layout(FP32), FP32]]
    state = SimpleNamespace(target=None, original=None)
    chosen = builder._settle(state, order, records)
    assert chosen.trial.figures.candidate.name == with_layout(FP32).name
    skipped = [r for r in records.values() if "not looked at" in r.reason]
    assert len(skipped) == 20 - finisher.looks[with_layout(FP32).name]
    assert {r.outcome for r in skipped} <= {"passed_over"}


def test_without_anything_in_float_every_look_is_taken():
    finisher, records = Finisher(500), {}
    builder = VariantBuilder(
        SimpleNamespace(contract=CONTRACT, evaluation_n=500), None, None, None, None, finisher
    )
    ints = [Candidate(name=f"i{k}", precision="int8", scheme=Scheme.DYNAMIC) for k in range(5)]
    state = SimpleNamespace(target=None, original=None)
    assert builder._settle(state, [_trial(i) for i in ints], records).outcome is Outcome.FAIL
    assert len(finisher.looks) == 5


def test_no_look_is_kept_for_what_comes_after_the_original():
    finisher, records = Finisher(450), {}
    builder = VariantBuilder(
        SimpleNamespace(contract=CONTRACT, evaluation_n=450), None, None, None, None, finisher
    )
    ints = [Candidate(name=f"i{k}", precision="int8", scheme=Scheme.DYNAMIC) for k in range(5)]
    order = [_trial(each) for each in [*ints, FP32, with_layout(FP32)]]
    builder._settle(SimpleNamespace(target=None, original=None), order, records)
    assert {each.name for each in ints} <= finisher.looks.keys()
