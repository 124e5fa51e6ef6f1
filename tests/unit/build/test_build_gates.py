"""Gates fail closed; the order of preference and the explanations are pure."""

import msgspec
import pytest

from edgekit.build import gates, select, target
from edgekit.build.candidates import FP32, Candidate, Ops, candidates_for
from edgekit.build.target import Gate, Validation
from edgekit.contracts.contract import Budget, QualityBudget
from edgekit.contracts.evaluation import Latency
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit.stats.bounds import Drop

QUALITY = QualityBudget(metric="top1", drop_max=0.02)
INT8 = Candidate(name="int8-a", precision="int8", ops=Ops.WEIGHTS)
OTHER = Candidate(name="int8-b", precision="int8", ops=Ops.ALL)


def ms(p50, p95=None):
    return Latency(p50_ms=p50, p95_ms=p95 or p50, runs=100, threads=1)


def drop(estimate, upper):
    return Drop(estimate, estimate, upper, 500)


def test_quality_is_judged_by_the_upper_bound():
    assert gates.quality(drop(0.0, 0.02), QUALITY).outcome is Outcome.PASS
    verdict = gates.quality(drop(0.0, 0.0201), QUALITY)
    assert verdict.outcome is Outcome.FAIL
    assert (verdict.high, verdict.threshold, verdict.n) == (0.0201, 0.02, 500)


@pytest.mark.parametrize(
    "verdict",
    [
        gates.quality(None, QUALITY),
        gates.latency(None, None, Budget(), is_fp32=True),
        gates.latency(None, ms(1), Budget(latency_ms_p95_max=5), is_fp32=False),
        gates.latency(ms(1), None, Budget(), is_fp32=False),
        gates.golden(None),
    ],
)
def test_what_was_not_measured_fails(verdict):
    assert verdict.outcome is Outcome.FAIL
    assert verdict.missing == 1.0


@pytest.mark.parametrize(
    ("size", "budget", "outcome"),
    [
        (105_000 + 4096, Budget(), Outcome.PASS),
        (105_000 + 4097, Budget(), Outcome.FAIL),
        (50_000, Budget(size_bytes_max=50_000), Outcome.PASS),
        (50_001, Budget(size_bytes_max=50_000), Outcome.FAIL),
    ],
)
def test_size_budget(size, budget, outcome):
    assert gates.size(size, 100_000, budget).outcome is outcome


def test_latency_compares_medians_unless_a_budget_is_declared():
    assert gates.latency(ms(1.09, 9), ms(1), Budget(), is_fp32=False).outcome is Outcome.PASS
    assert gates.latency(ms(1.11, 1.2), ms(1), Budget(), is_fp32=False).outcome is Outcome.FAIL
    assert gates.latency(ms(1.11), ms(1), Budget(), is_fp32=True).outcome is Outcome.PASS
    declared = Budget(latency_ms_p95_max=5.0)
    assert gates.latency(ms(9, 5), ms(1), declared, is_fp32=False).outcome is Outcome.PASS
    assert gates.latency(ms(1, 6), ms(9), declared, is_fp32=True).outcome is Outcome.FAIL


def judge(profile, level):
    good = Verdict(metric="m", outcome=Outcome.PASS, reason="")
    return gates.judge(
        profile,
        level=level,
        quality_verdict=msgspec.structs.replace(good, metric="quality"),
        size_verdict=msgspec.structs.replace(good, metric="size"),
        golden_verdict=msgspec.structs.replace(good, metric="golden"),
        latency_verdict=msgspec.structs.replace(good, metric="latency"),
    )


def test_only_declared_gates_exist():
    assert [v.metric for v in judge(target.find("rpi5"), Validation.NONE)] == ["quality", "size"]


def test_a_target_that_requires_native_validation_fails_elsewhere():
    profile = target.find("x86-64-v3")
    outcomes = {v.metric: v.outcome for v in judge(profile, Validation.NONE)}
    assert outcomes["validation"] is Outcome.FAIL
    assert all(v.outcome is Outcome.PASS for v in judge(profile, Validation.NATIVE))


def figures(candidate, size, estimate=0.0, latency=None):
    return select.Figures(candidate, size, drop(estimate, estimate), latency)


def names(order):
    return [entry.candidate.name for entry in order]


def test_fastest_wins_where_timed_and_smallest_elsewhere():
    timed = [figures(FP32, 100, latency=ms(1)), figures(INT8, 30, latency=ms(2))]
    assert names(select.preference(timed, 0.02)) == ["fp32", "int8-a"]
    untimed = [figures(FP32, 100), figures(INT8, 30), figures(OTHER, 40)]
    assert names(select.preference(untimed, 0.02)) == ["int8-a", "int8-b", "fp32"]


def test_as_fast_is_decided_by_size():
    close = [figures(FP32, 100, latency=ms(1.0)), figures(INT8, 30, latency=ms(1.09))]
    assert names(select.preference(close, 0.02)) == ["int8-a", "fp32"]


def test_candidates_over_budget_are_out_and_fp32_never_is():
    both = [figures(FP32, 100, 0.03), figures(INT8, 30, 0.021)]
    assert names(select.preference(both, 0.02)) == ["fp32"]
    assert "drops 0.0210 on the tuning data" in select.explain(both[1], both[0], 0.02)


def test_saturating_targets_reduce_range_and_arm_takes_signed_activations():
    assert all(c.reduce_range for c in candidates_for(target.find("x86-64-v3"))[1:])
    assert not any(c.reduce_range for c in candidates_for(target.find("x86-64-vnni")))
    assert {c.activations.value for c in candidates_for(target.find("rpi5"))[1:]} == {"s8"}
    for profile in target.shipped().values():
        assert candidates_for(profile)[0] == FP32
        assert Gate.QUALITY in profile.gates
