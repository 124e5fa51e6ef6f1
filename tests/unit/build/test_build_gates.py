"""Gates fail closed; the order of preference and the explanations are pure."""

import msgspec
import pytest

from edgekit.build import gates, select, target
from edgekit.build.candidates import (
    AS_REGISTERED,
    FP32,
    Candidate,
    Layer,
    Ops,
    Reduce,
    Scheme,
    Structure,
    candidates_for,
)
from edgekit.build.judge import SliceDrop
from edgekit.build.target import Gate, Validation
from edgekit.contracts.contract import Budget, QualityBudget
from edgekit.contracts.evaluation import Latency
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit.stats.bounds import Drop

QUALITY = QualityBudget(metric="top1", drop_max=0.02)
INT8 = Candidate(name="int8-a", precision="int8", scheme=Scheme.STATIC, ops=Ops.WEIGHTS)
OTHER = Candidate(name="int8-b", precision="int8", scheme=Scheme.STATIC, ops=Ops.ALL)
STORED = Candidate(name="weights8", precision="w8", scheme=Scheme.WEIGHT_ONLY)
MIXED = Structure(
    layers=(Layer("c", "Conv"), Layer("m", "MatMul")), ops=("Conv", "MatMul"), quantized=False
)


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
        gates.latency(None, None, Budget(), unquantized=True),
        gates.latency(None, ms(1), Budget(latency_ms_p95_max=5), unquantized=False),
        gates.latency(ms(1), None, Budget(), unquantized=False),
        gates.golden(None),
        gates.coverage(None, 0.75, quantized=True),
        gates.memory(None, Budget(), target.find("rpi5")),
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
    assert gates.latency(ms(1.09, 9), ms(1), Budget(), unquantized=False).outcome is Outcome.PASS
    assert gates.latency(ms(1.11, 1.2), ms(1), Budget(), unquantized=False).outcome is Outcome.FAIL
    assert gates.latency(ms(1.11), ms(1), Budget(), unquantized=True).outcome is Outcome.PASS
    declared = Budget(latency_ms_p95_max=5.0)
    assert gates.latency(ms(9, 5), ms(1), declared, unquantized=False).outcome is Outcome.PASS
    assert gates.latency(ms(1, 6), ms(9), declared, unquantized=True).outcome is Outcome.FAIL


def judge(profile, level):
    good = Verdict(metric="m", outcome=Outcome.PASS, reason="")
    return gates.judge(
        profile,
        level=level,
        quality_verdict=msgspec.structs.replace(good, metric="quality"),
        size_verdict=msgspec.structs.replace(good, metric="size"),
        golden_verdict=msgspec.structs.replace(good, metric="golden"),
        latency_verdict=msgspec.structs.replace(good, metric="latency"),
        emulated_verdict=msgspec.structs.replace(good, metric="emulated"),
        coverage_verdict=msgspec.structs.replace(good, metric="coverage"),
        memory_verdict=msgspec.structs.replace(good, metric="memory"),
    )


def test_only_declared_gates_exist():
    found = [v.metric for v in judge(target.find("rpi5"), Validation.NONE)]
    assert found == ["quality", "size"]
    wanted = (*target.find("rpi5").gates, target.Gate.COVERAGE)
    more = msgspec.structs.replace(target.find("rpi5"), gates=wanted)
    found = [v.metric for v in judge(more, Validation.NONE)]
    assert found == ["quality", "size", "coverage"]


def test_a_silent_way_back_to_float_fails():
    assert gates.coverage(0.5, 0.75, quantized=True).outcome is Outcome.FAIL
    assert gates.coverage(0.75, 0.75, quantized=True).outcome is Outcome.PASS
    assert gates.coverage(None, 0.75, quantized=False).outcome is Outcome.PASS


def test_memory_is_held_to_the_budget_else_to_what_the_target_has():
    rpi5 = target.find("rpi5")
    assert gates.memory(5 << 30, Budget(), rpi5).outcome is Outcome.FAIL
    assert gates.memory(1 << 30, Budget(), rpi5).outcome is Outcome.PASS
    verdict = gates.memory(1 << 30, Budget(memory_bytes_max=1 << 29), rpi5)
    assert verdict.outcome is Outcome.FAIL
    assert "by the budget" in verdict.reason


def test_a_target_that_requires_native_validation_fails_elsewhere():
    profile = target.find("x86-64-v3")
    outcomes = {v.metric: v.outcome for v in judge(profile, Validation.NONE)}
    assert outcomes["validation"] is Outcome.FAIL
    assert all(v.outcome is Outcome.PASS for v in judge(profile, Validation.NATIVE))


def test_levels_of_validation_are_ordered_and_what_ran_must_have_passed():
    profile = target.find("x86-64-v3")
    required = msgspec.structs.replace(
        profile, gates=(Gate.QUALITY,), validation_required=Validation.EMULATED
    )
    for level, passes in ((Validation.NONE, False), (Validation.EMULATED, True)):
        outcomes = {v.metric: v.outcome for v in judge(required, level)}
        assert (outcomes["validation"] is Outcome.PASS) is passes
        assert ("emulated" in outcomes) is (level is Validation.EMULATED)
    assert judge(required, Validation.NATIVE)[-1].outcome is Outcome.PASS
    native = msgspec.structs.replace(profile, validation_required=Validation.NATIVE)
    assert judge(native, Validation.EMULATED)[-1].outcome is Outcome.FAIL


def test_emulation_is_judged_by_quality_and_by_the_golden_set():
    agrees = Verdict(metric="golden_agreement", outcome=Outcome.PASS, reason="32 of 32")
    strays = Verdict(metric="golden_agreement", outcome=Outcome.FAIL, reason="3 of 32")
    verdict = gates.emulated(drop(0, 0.02), agrees, QUALITY, "here")
    assert verdict.outcome is Outcome.PASS
    assert verdict.reason.endswith("golden set of the build host: 32 of 32")
    assert gates.emulated(drop(0, 0.03), agrees, QUALITY, "here").outcome is Outcome.FAIL
    verdict = gates.emulated(drop(0, 0.02), strays, QUALITY, "here")
    assert (verdict.outcome, verdict.metric) == (Outcome.FAIL, "emulated_top1_drop")
    assert "3 of 32" in verdict.reason
    assert gates.emulated(None, None, QUALITY, "no emulator").outcome is Outcome.FAIL


def figures(candidate, size, estimate=0.0, latency=None):
    bounds = drop(estimate, estimate)
    return select.Figures(candidate, size, bounds, latency, bounds)


def noisy(candidate, size, latency, noise):
    return select.Figures(candidate, size, drop(0, 0), latency, drop(0, 0), noise)


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
    def static(name):
        found = candidates_for(target.find(name), MIXED)
        return [candidate for candidate in found if candidate.scheme is Scheme.STATIC]

    assert {c.reduce_range for c in static("x86-64-v3")} == {Reduce.WHERE}
    assert {c.reduce_range for c in static("x86-64-vnni")} == {Reduce.NEVER}
    assert {c.activations.value for c in static("rpi5")} == {"s8"}
    for profile in target.shipped().values():
        assert candidates_for(profile, MIXED)[0] == FP32
        assert Gate.QUALITY in profile.gates


def test_first_round_covers_schemes_operator_sets_and_granularity():
    found = candidates_for(target.find("x86-64-vnni"), MIXED)
    assert {c.scheme for c in found} == set(Scheme) - {Scheme.EXPLICIT, Scheme.NNCF}
    assert {c.ops for c in found if c.scheme is Scheme.STATIC} == set(Ops)
    assert {c.per_channel for c in found} == {True, False}
    assert len({c.name for c in found}) == len(found)
    layers = {c.name: c.layers_of(MIXED) for c in found}
    assert layers["int8-weights-u8"] == ("c", "m")
    assert layers["int8-conv-u8"] == layers["int8-body-u8"] == ("c",)
    assert layers["int8-dynamic"] == ("m",)  # never a convolution
    assert layers["fp32"] == layers["fp16"] == ()


def test_tensorrt_gets_symmetric_pairs_and_a_gpu_without_int8_none():
    found = candidates_for(target.find("jetson-orin"), MIXED)
    assert {c.scheme for c in found[1:]} == {Scheme.EXPLICIT}
    assert {c.ops for c in found[1:]} == {Ops.WEIGHTS, Ops.CONV, Ops.BODY}
    assert candidates_for(target.find("jetson-nano"), MIXED) == (FP32,)


def test_what_is_quantized_already_is_passed_through():
    structure = msgspec.structs.replace(MIXED, quantized=True)
    assert candidates_for(target.find("rpi5"), structure) == (AS_REGISTERED,)


def test_storing_less_proves_no_speed_where_nothing_is_timed():
    untimed = [figures(FP32, 100), figures(STORED, 25), figures(INT8, 30)]
    assert names(select.preference(untimed, 0.02)) == ["int8-a", "fp32", "weights8"]
    assert "no gain over int8-a is proven" in select.explain(untimed[1], untimed[2], 0.02)
    timed = [figures(FP32, 100, latency=ms(2)), figures(STORED, 25, latency=ms(1))]
    assert names(select.preference(timed, 0.02)) == ["weights8", "fp32"]


def test_what_gains_nothing_is_not_worth_an_error():
    close = [
        figures(FP32, 100, latency=ms(1.0)),
        noisy(INT8, 98, ms(0.97), 0.01),
        noisy(OTHER, 99, ms(0.99), 0.001),
    ]
    assert names(select.preference(close, 0.02)) == ["fp32", "int8-b", "int8-a"]
    untimed = [noisy(INT8, 30, None, 0.1), noisy(OTHER, 32, None, 0.01)]
    assert names(select.preference(untimed, 0.02)) == ["int8-b", "int8-a"]


def test_a_broken_slice_is_out_whatever_the_average_says():
    broken = select.Figures(INT8, 30, drop(0, 0), None, drop(0, 0), 0.0, ("night",))
    assert names(select.preference([figures(FP32, 100), broken], 0.02)) == ["fp32"]
    assert "slice night" in select.explain(broken, figures(FP32, 100), 0.02)


def test_slices_are_gated_by_bound_where_resolved_and_by_estimate_elsewhere():
    resolved = SliceDrop("1", drop(0.0, 0.03), resolved=True)
    small = SliceDrop("2", drop(0.0, 0.3), resolved=False)
    worse = SliceDrop("3", drop(0.1, 0.3), resolved=False)
    outcomes = [gates.in_slice(each, QUALITY).outcome for each in (resolved, small, worse)]
    assert outcomes == [Outcome.FAIL, Outcome.PASS, Outcome.FAIL]
    assert "too few for a bound" in gates.in_slice(small, QUALITY).reason


def test_a_bound_that_the_evaluation_would_break_is_out_before_it():
    risky = select.Figures(INT8, 30, drop(0.01, 0.09), None, drop(0.01, 0.021))
    assert names(select.preference([figures(FP32, 100), risky], 0.02)) == ["fp32"]
    assert "up to 0.0210 is to be expected" in select.explain(risky, figures(FP32, 100), 0.02)


def test_the_front_holds_what_nothing_beats():
    measured = [
        figures(FP32, 100, 0.0, ms(3)),
        figures(INT8, 30, 0.01, ms(1)),
        figures(OTHER, 40, 0.01, ms(2)),
    ]
    assert select.front(measured) == {"fp32", "int8-a"}
