"""Paired comparison of a variant with the original, by the contract's metric: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.contracts.contract import Contract
from edgekit.registry.infer import scored_output
from edgekit.registry.npz import Array
from edgekit.stats.bounds import Drop
from edgekit.stats.metrics import METRICS


@dataclass(frozen=True)
class Comparison:
    """Drop with its bounds, mean quality of both, and relative distance of the outputs."""

    drop: Drop
    expected: Drop
    quality: float
    original_quality: float
    noise: float


def compare(
    contract: Contract,
    original: Mapping[str, Array],
    variant: Mapping[str, Array],
    labels: Array | None,
    *,
    rows: int,
    expected_n: int,
) -> Comparison:
    """Compare the first ``rows`` samples.

    Args:
        contract: names the metric and its confidence.
        original: outputs of the original by name.
        variant: outputs of the variant by name.
        labels: the truth, where the metric needs it.
        rows: samples that count.
        expected_n: size of the set for which ``expected`` foretells the drop.
    """
    budget = contract.quality
    metric, name = METRICS[budget.metric], scored_output(contract).name
    before, after = original[name][:rows], variant[name][:rows]
    truth = labels[:rows] if metric.needs_labels and labels is not None else before
    assert labels is not None or not metric.needs_labels  # registration refuses that
    scores = metric.score(before, truth), metric.score(after, truth)
    drop = metric.drop(*scores, confidence=budget.confidence)
    # As if the other set repeated these samples, each equally often.
    spread = np.arange(expected_n) * rows // expected_n
    expected = metric.drop(scores[0][spread], scores[1][spread], confidence=budget.confidence)
    return Comparison(
        drop=drop,
        expected=expected,
        quality=float(np.mean(scores[1])),
        original_quality=float(np.mean(scores[0])),
        noise=_distance(before, after),
    )


def _distance(before: Array, after: Array) -> float:
    """Norm of the difference relative to that of the original; infinite for broken outputs."""
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if not np.isfinite(b).all():
        return float("inf")
    size = float(np.linalg.norm(a))
    return float(np.linalg.norm(a - b)) / size if size else float(np.linalg.norm(b))
