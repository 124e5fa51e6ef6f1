"""Rollout gates: candidate against concurrent control, tri-state, safe to look at often.

Each gate spends its alpha over its looks (`edgekit.stats.sequential`) and compares device means
(`edgekit.stats.clusters`), so neither frequent looking nor many inferences on few devices can make
it surer than it is. Pass: the whole interval is on the good side of ``max``. Fail: the whole
interval is on the bad side. Otherwise inconclusive, which holds the rollout and never passes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.contracts.verdict import Outcome, Verdict
from edgekit.stats import clusters, sequential
from edgekit.stats.clusters import DeviceRatio, Difference
from edgekit_fleet.rollout.model import DeviceView, Evidence, WaveState
from edgekit_fleet.rollout.spec import Gate, Metric

Ratio = Callable[[Evidence], DeviceRatio]


@dataclass(frozen=True)
class _Cohorts:
    candidate: tuple[Evidence, ...]
    control: tuple[Evidence, ...]


def _accuracy(evidence: Evidence) -> DeviceRatio:
    return DeviceRatio(evidence.correct, evidence.labelled)


def _errors(evidence: Evidence) -> DeviceRatio:
    return DeviceRatio(evidence.errors, evidence.n)


def _confidence(evidence: Evidence) -> DeviceRatio:
    return DeviceRatio(evidence.confidence_sum, sum(evidence.classes))


def _class_share(index: int) -> Ratio:
    def ratio(evidence: Evidence) -> DeviceRatio:
        classes = evidence.classes
        return DeviceRatio(classes[index] if index < len(classes) else 0, sum(classes))

    return ratio


def _counted(group: Sequence[Evidence], ratio: Ratio) -> list[DeviceRatio]:
    return [found for found in map(ratio, group) if found.n > 0]


def _shortage(gate: Gate, cohorts: _Cohorts, ratio: Ratio) -> tuple[str | None, float]:
    """Why nothing can be decided yet (None when it can), and the larger missing share."""
    groups = [("candidate", cohorts.candidate)]
    if gate.metric is not Metric.ERROR_RATE:
        groups.append(("control", cohorts.control))
    worst, reason = 0.0, None
    for name, group in groups:
        heard = _counted(group, ratio)
        missing = 1.0 - len(heard) / len(group) if group else 1.0
        worst = max(worst, missing)
        total = sum(found.n for found in heard)
        if missing > gate.missing_max:
            reason = f"{len(group) - len(heard)} of {len(group)} {name} devices sent no data"
        elif total < gate.n_min:
            reason = f"{total} of at least {gate.n_min} samples in the {name} cohort"
        elif len(heard) < 2:
            reason = f"only {len(heard)} {name} device with data, at least 2 are needed"
    return reason, worst


def _judge(gate: Gate, found: Difference, missing: float, text: str) -> Verdict:
    """Verdict on a difference that is oriented so that larger is worse."""
    if found.low > gate.max:
        outcome, relation = Outcome.FAIL, "above"
    elif found.high <= gate.max:
        outcome, relation = Outcome.PASS, "within"
    else:
        outcome, relation = Outcome.INCONCLUSIVE, "not yet clear of"
    return Verdict(
        metric=gate.metric.value,
        outcome=outcome,
        reason=f"{text}: {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}] is {relation} "
        f"the limit {gate.max:g}; {found.n_devices} devices, {found.n} samples",
        threshold=gate.max,
        estimate=found.estimate,
        low=found.low,
        high=found.high,
        n_devices=found.n_devices,
        n=found.n,
        missing=missing,
    )


def _negated(found: Difference) -> Difference:
    return Difference(
        estimate=-found.estimate,
        low=-found.high,
        high=-found.low,
        candidate_mean=found.candidate_mean,
        control_mean=found.control_mean,
        n_devices=found.n_devices,
        n=found.n,
    )


def _compare(cohorts: _Cohorts, ratio: Ratio, alpha: float) -> Difference | None:
    return clusters.difference(
        _counted(cohorts.candidate, ratio), _counted(cohorts.control, ratio), alpha=alpha
    )


def _magnitude(found: Difference) -> Difference:
    """Interval of the absolute difference, for shifts that are bad in either direction."""
    low = max(0.0, found.low, -found.high)
    high = max(abs(found.low), abs(found.high))
    return Difference(
        estimate=abs(found.estimate),
        low=low,
        high=high,
        candidate_mean=found.candidate_mean,
        control_mean=found.control_mean,
        n_devices=found.n_devices,
        n=found.n,
    )


def _largest_class_shift(cohorts: _Cohorts, alpha: float) -> Difference | None:
    """The class whose share moved most; alpha is divided over classes (Bonferroni)."""
    groups = (*cohorts.candidate, *cohorts.control)
    classes = max((len(evidence.classes) for evidence in groups), default=0)
    shifts = [
        _magnitude(found)
        for index in range(classes)
        if (found := _compare(cohorts, _class_share(index), alpha / classes)) is not None
    ]
    if not shifts:
        return None
    # The bound on the largest shift is the largest of the bounds, at either end.
    top = max(shifts, key=lambda found: found.estimate)
    return Difference(
        estimate=top.estimate,
        low=max(found.low for found in shifts),
        high=max(found.high for found in shifts),
        candidate_mean=top.candidate_mean,
        control_mean=top.control_mean,
        n_devices=top.n_devices,
        n=top.n,
    )


def _measure(gate: Gate, cohorts: _Cohorts, alpha: float) -> tuple[Difference | None, str]:
    """The difference a gate judges, larger is worse, and how to say it."""
    metric = gate.metric
    if metric is Metric.ERROR_RATE:
        found = clusters.level(_counted(cohorts.candidate, _errors), alpha=alpha)
        return found, "error rate of the candidate"
    if metric is Metric.PREDICTION_SHIFT:
        return _largest_class_shift(cohorts, alpha), "largest change of a class's share"
    if metric is Metric.CONFIDENCE_SHIFT:
        found = _compare(cohorts, _confidence, alpha)
        return found and _magnitude(found), "change of mean confidence"
    if metric is Metric.ERROR_RATE_INCREASE:
        return _compare(cohorts, _errors, alpha), "error rate, candidate minus control"
    found = _compare(cohorts, _accuracy, alpha)
    if found is None:
        return None, "accuracy"
    text = f"accuracy {found.candidate_mean:.3f} against control {found.control_mean:.3f}, drop"
    return _negated(found), text


_RATIOS: dict[Metric, Ratio] = {
    Metric.ACCURACY_DROP: _accuracy,
    Metric.PREDICTION_SHIFT: _confidence,  # same denominator: classified inferences
    Metric.CONFIDENCE_SHIFT: _confidence,
    Metric.ERROR_RATE_INCREASE: _errors,
    Metric.ERROR_RATE: _errors,
}


def evaluate(gate: Gate, wave: WaveState, views: Mapping[str, DeviceView], look: int) -> Verdict:
    """Verdict of one gate at its ``look``-th look (from 1). Pure."""
    # A device that vanished from the fleet still belongs to its cohort: it counts as missing.
    gone = Evidence()
    cohorts = _Cohorts(
        candidate=tuple(views[d].candidate if d in views else gone for d in wave.devices),
        control=tuple(views[d].other if d in views else gone for d in wave.control),
    )
    shortage, missing = _shortage(gate, cohorts, _RATIOS[gate.metric])
    if shortage is None:
        found, text = _measure(gate, cohorts, sequential.spend(gate.alpha, look))
        if found is not None:
            return _judge(gate, found, missing, text)
        shortage = "no comparable figures yet"
    return Verdict(
        metric=gate.metric.value,
        outcome=Outcome.INCONCLUSIVE,
        reason=f"not enough evidence: {shortage}",
        threshold=gate.max,
        n_devices=len(wave.devices) + len(wave.control),
        missing=missing,
    )
