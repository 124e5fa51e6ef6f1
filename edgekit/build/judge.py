"""Paired comparison of a variant with the original, by the contract's metric: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import msgspec
import numpy as np

from edgekit.contracts.contract import Contract, QualityBudget
from edgekit.registry.infer import scored_output
from edgekit.registry.npz import Array
from edgekit.stats import bounds
from edgekit.stats.bounds import Drop
from edgekit.stats.metrics import Metric, metric_of

_ASSURANCE = 0.9  # how often what is foretold holds, by the normal approximation


@dataclass(frozen=True)
class SliceDrop:
    """Drop within one slice. ``resolved``: it has enough samples for its bound to mean anything."""

    name: str
    drop: Drop
    resolved: bool

    def within(self, drop_max: float) -> bool:
        """The bound where it is resolved; the estimate where samples are too few for that."""
        return (self.drop.upper if self.resolved else self.drop.estimate) <= drop_max


@dataclass(frozen=True)
class Comparison:
    """Drop with its bounds, mean quality of both, and relative distance of the outputs.

    ``expected.upper`` is not exceeded by the bound that another set shows, nine times in ten.
    """

    drop: Drop
    expected: Drop
    quality: float
    original_quality: float
    noise: float
    slices: tuple[SliceDrop, ...] = ()


def compare(
    contract: Contract,
    original: Mapping[str, Array],
    variant: Mapping[str, Array],
    labels: Array | None,
    *,
    rows: int,
    expected_n: int,
    slices: Array | None = None,
) -> Comparison:
    """Compare the first ``rows`` samples.

    Args:
        contract: names the metric and its confidence.
        original: outputs of the original by name.
        variant: outputs of the variant by name.
        labels: the truth, where the metric needs it.
        rows: samples that count.
        expected_n: size of the set for which ``expected`` foretells the drop.
        slices: which slice each sample belongs to, if the data set says.
    """
    budget = contract.quality
    metric, name = metric_of(budget.metric), scored_output(contract).name
    before, after = original[name][:rows], variant[name][:rows]
    truth = labels[:rows] if metric.needs_labels and labels is not None else before
    assert labels is not None or not metric.needs_labels  # registration refuses that
    scores = metric.score(before, truth), metric.score(after, truth)
    drop = metric.drop(*scores, confidence=budget.confidence)
    # As if the other set repeated these samples, each equally often …
    spread = np.arange(expected_n) * rows // expected_n
    expected = metric.drop(scores[0][spread], scores[1][spread], confidence=budget.confidence)
    # … but for what differs by chance between two sets: who passes by luck fails in the field.
    deviation = _deviation(scores, expected, budget.confidence)
    chance = _z(_ASSURANCE) * deviation * np.sqrt(1.0 / rows + 1.0 / expected_n)
    expected = msgspec.structs.replace(expected, upper=expected.upper + float(chance))
    return Comparison(
        drop=drop,
        expected=expected,
        quality=metric.value(scores[1]),
        original_quality=metric.value(scores[0]),
        noise=_distance(before, after),
        slices=() if slices is None else _by_slice(metric, scores, slices[:rows], budget),
    )


def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _deviation(scores: tuple[Array, Array], drop: Drop, confidence: float) -> float:
    """Standard deviation of one sample's part in a drop; 0 when no score changes."""
    before, after = scores
    if np.array_equal(before, after):
        return 0.0
    if before.ndim == 1:
        return float(np.std(before.astype(np.float64) - after))
    # A pooled metric has no parts: what its bootstrap says of so many samples.
    return (drop.upper - drop.estimate) / _z(confidence) * float(np.sqrt(drop.n))


def _by_slice(
    metric: Metric, scores: tuple[Array, Array], slices: Array, budget: QualityBudget
) -> tuple[SliceDrop, ...]:
    found = []
    for name in np.unique(slices):
        here = slices == name
        n = int(here.sum())
        if n < 2:
            # One sample says whether it was lost, and the estimate is all there is.
            lost = metric.value(scores[0][here]) - metric.value(scores[1][here])
            found.append(SliceDrop(str(name), Drop(lost, lost, lost, n), resolved=False))
            continue
        drop = metric.drop(scores[0][here], scores[1][here], confidence=budget.confidence)
        found.append(SliceDrop(str(name), drop, resolved=n >= _needed(metric, budget)))
    return tuple(found)


def can_pass(budget: QualityBudget, n: int) -> bool:
    """Whether ``n`` samples could show that ``budget`` is kept, if not one score changed."""
    return n >= _needed(metric_of(budget.metric), budget)


def _needed(metric: Metric, budget: QualityBudget) -> int:
    if metric.bound is bounds.Bound.EXACT:
        return bounds.samples_to_resolve(budget.drop_max, budget.confidence)
    if metric.bound is bounds.Bound.BERNSTEIN:
        return bounds.mean_samples_to_resolve(budget.drop_max, budget.confidence, span=metric.span)
    return bounds.BOOTSTRAP_SAMPLES_MIN


def _distance(before: Array, after: Array) -> float:
    """Norm of the difference relative to that of the original; infinite for broken outputs."""
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if not np.isfinite(b).all():
        return float("inf")
    size = float(np.linalg.norm(a))
    return float(np.linalg.norm(a - b)) / size if size else float(np.linalg.norm(b))
