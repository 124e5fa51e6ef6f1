"""Build gates: pure functions from figures to verdicts, fail closed.

A declared gate whose figure is absent fails. Quality is judged by the *upper confidence bound* of
the paired drop, never by the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.build.judge import SliceDrop
from edgekit.build.target import Gate, TargetProfile, Validation
from edgekit.contracts.contract import Budget, QualityBudget
from edgekit.contracts.evaluation import Latency
from edgekit.contracts.verdict import Outcome, Verdict, not_measured
from edgekit.stats import bounds

SIZE_RATIO_MAX = 1.05  # without a declared budget a variant may not outgrow the original …
SIZE_SLACK_BYTES = 4096  # … but for the room that metadata of tiny models takes
LATENCY_RATIO_MAX = 1.1  # without a declared budget; timing noise of one run stays below


def _verdict(
    metric: str,
    reason: str,
    *,
    passed: bool,
    threshold: float | None = None,
    estimate: float | None = None,
    n: int = 0,
) -> Verdict:
    return Verdict(
        metric=metric,
        outcome=Outcome.PASS if passed else Outcome.FAIL,
        reason=reason,
        threshold=threshold,
        estimate=estimate,
        n=n,
    )


def percent(share: float) -> str:
    """``96.25%``, without zeros that say nothing."""
    return f"{100 * share:.4g}%"


def quality(drop: bounds.Drop | None, budget: QualityBudget, *, look: int = 0) -> Verdict:
    """Upper bound of the paired drop against the budget.

    Args:
        drop: found on the evaluation split, with its bounds.
        budget: what may be lost, at the confidence that this look at the split has to reach.
        look: how often the split was looked at before for this target.
    """
    metric = f"{budget.metric}_drop"
    if drop is None:
        return not_measured(metric, "no paired scores", threshold=budget.drop_max)
    passed = drop.upper <= budget.drop_max
    again = f" (look {look + 1} at this data)" if look else ""
    reason = (
        f"{budget.metric} drops by {drop.estimate:.4f}, at most {drop.upper:.4f} with "
        f"{percent(budget.confidence)} confidence; allowed {budget.drop_max:g}{again}"
    )
    return Verdict(
        metric=metric,
        outcome=Outcome.PASS if passed else Outcome.FAIL,
        reason=reason,
        threshold=budget.drop_max,
        estimate=drop.estimate,
        low=drop.lower,
        high=drop.upper,
        n=drop.n,
    )


def in_slice(found: SliceDrop, budget: QualityBudget) -> Verdict:
    """The quality gate within one slice: what holds on average may break a minority."""
    within = found.within(budget.drop_max)
    drop = found.drop
    how = (
        f"at most {drop.upper:.4f} with {percent(budget.confidence)} confidence"
        if found.resolved
        else f"{drop.n} samples are too few for a bound, so the estimate counts"
    )
    reason = (
        f"slice {found.name}: {budget.metric} drops by {drop.estimate:.4f}, {how}; "
        f"allowed {budget.drop_max:g}"
    )
    metric = f"{budget.metric}_drop[{found.name}]"
    verdict = _verdict(
        metric, reason, passed=within, threshold=budget.drop_max, estimate=drop.estimate, n=drop.n
    )
    return msgspec.structs.replace(verdict, low=drop.lower, high=drop.upper)


def size(size_bytes: int, original_bytes: int, budget: Budget) -> Verdict:
    """Size of the model file."""
    declared = budget.size_bytes_max
    limit = declared or int(original_bytes * SIZE_RATIO_MAX) + SIZE_SLACK_BYTES
    source = "budget" if declared else "size of the original"
    reason = f"{size_bytes} bytes; allowed {limit} by the {source}"
    passed = size_bytes <= limit
    return _verdict("size_bytes", reason, passed=passed, threshold=limit, estimate=size_bytes, n=1)


def latency(
    variant: Latency | None, original: Latency | None, budget: Budget, *, unquantized: bool
) -> Verdict:
    """Latency on real hardware: p95 against a declared budget, else p50 against the original's.

    Medians are compared with medians, because a p95 of one run holds whatever else the machine did.
    """
    declared = budget.latency_ms_p95_max
    metric = "latency_ms_p95" if declared else "latency_ms_p50"
    if variant is None:
        return not_measured(metric, "this machine is not the target", threshold=declared)
    if declared:
        return _verdict(
            metric,
            f"p95 {variant.p95_ms:.3f} ms; allowed {declared:g} ms by the budget",
            passed=variant.p95_ms <= declared,
            threshold=declared,
            estimate=variant.p95_ms,
            n=variant.runs,
        )
    if original is None:
        return not_measured(metric, "the original was not timed in the same run")
    limit = original.p50_ms * LATENCY_RATIO_MAX
    reason = f"p50 {variant.p50_ms:.3f} ms; the original takes {original.p50_ms:.3f} ms"
    if unquantized:
        reason += "; it computes the same as the original"
    return _verdict(
        metric,
        reason,
        passed=unquantized or variant.p50_ms <= limit,
        threshold=limit,
        estimate=variant.p50_ms,
        n=variant.runs,
    )


def coverage(share: float | None, least: float, *, quantized: bool) -> Verdict:
    """Share of the quantized layers that the engine runs in integers: no silent way back to float.

    Args:
        share: as the engine said; None when it was not asked.
        least: what the target demands.
        quantized: whether the candidate has layers that are meant to run in integers.
    """
    metric = "integer_coverage"
    if not quantized:
        reason = "nothing is meant to run in integers"
        return _verdict(metric, reason, passed=True, threshold=least)
    if share is None:
        return not_measured(metric, "the engine was not asked", threshold=least)
    reason = f"{share:.0%} of the quantized layers run in integers; demanded {least:.0%}"
    return _verdict(metric, reason, passed=share >= least, threshold=least, estimate=share, n=1)


def memory(peak_bytes: int | None, budget: Budget, target: TargetProfile) -> Verdict:
    """Peak memory of the process that evaluates, which holds engine, model and a batch of data."""
    limit = budget.memory_bytes_max or target.memory_mb << 20
    source = "budget" if budget.memory_bytes_max else "memory of the target"
    metric = "memory_peak_bytes"
    if peak_bytes is None:
        return not_measured(metric, "this machine is not the target", threshold=limit)
    reason = f"peak of {peak_bytes} bytes; allowed {limit} by the {source}"
    passed = peak_bytes <= limit
    return _verdict(metric, reason, passed=passed, threshold=limit, estimate=peak_bytes, n=1)


def golden(replayed: Verdict | None) -> Verdict:
    """The device code's own verdict on the golden set."""
    return replayed or not_measured("golden_agreement", "the golden set was not replayed")


def emulated(
    drop: bounds.Drop | None, replayed: Verdict | None, budget: QualityBudget, where: str
) -> Verdict:
    """The quality gate once more, on outputs of the emulated CPU; its golden set must agree too."""
    metric = f"emulated_{budget.metric}_drop"
    if drop is None:
        return not_measured(metric, where, threshold=budget.drop_max)
    found = msgspec.structs.replace(quality(drop, budget), metric=metric)
    golden = f"golden set of the build host: {replayed.reason if replayed else 'not replayed'}"
    if found.outcome is Outcome.PASS and (replayed is None or replayed.outcome is not Outcome.PASS):
        reason = f"{where}: {golden}"
        return msgspec.structs.replace(found, outcome=Outcome.FAIL, reason=reason)
    return msgspec.structs.replace(found, reason=f"{where}: {found.reason}; {golden}")


def validation(level: Validation, required: Validation) -> Verdict:
    """Whether the artifact ran where the target profile asks for it, or at a higher level."""
    order = (Validation.NONE, Validation.EMULATED, Validation.NATIVE)
    passed = order.index(level) >= order.index(required)
    reason = f"validated: {level.value}; the target requires {required.value}"
    return _verdict("validation", reason, passed=passed)


def judge(
    target: TargetProfile,
    *,
    level: Validation,
    quality_verdict: Verdict,
    size_verdict: Verdict,
    golden_verdict: Verdict,
    latency_verdict: Verdict,
    emulated_verdict: Verdict,
    coverage_verdict: Verdict,
    memory_verdict: Verdict,
    slice_verdicts: Sequence[Verdict] = (),
) -> tuple[Verdict, ...]:
    """The verdicts of the gates that ``target`` declares, in its order."""
    known = {
        Gate.QUALITY: quality_verdict,
        Gate.SIZE: size_verdict,
        Gate.GOLDEN: golden_verdict,
        Gate.LATENCY: latency_verdict,
        Gate.EMULATED: emulated_verdict,
        Gate.COVERAGE: coverage_verdict,
        Gate.MEMORY: memory_verdict,
    }
    verdicts: Sequence[Verdict] = [known[gate] for gate in target.gates]
    verdicts = [verdicts[0], *slice_verdicts, *verdicts[1:]]
    if level is Validation.EMULATED and Gate.EMULATED not in target.gates:
        verdicts = [*verdicts, emulated_verdict]  # a level that was reached must have been passed
    if target.validation_required is not Validation.NONE:
        verdicts = [*verdicts, validation(level, target.validation_required)]
    return tuple(verdicts)
