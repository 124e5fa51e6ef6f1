"""Quality metrics as per-sample scores, so that original and variant can be compared in pairs.

`score` gives one number per sample, higher is better. ``binary`` scores (right or wrong) get the
exact paired bound, others the empirical Bernstein bound over their ``span``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.stats import bounds

Array = npt.NDArray[Any]
_SUM_SLACK = 1e-3  # of shares in half precision, whose sum is not exactly one
LABELS = "labels"  # name of the array that holds the truth in a data set


@dataclass(frozen=True)
class Metric:
    """One metric. ``needs_labels`` is False when the truth is the original model's own output."""

    name: str
    binary: bool
    span: float
    needs_labels: bool
    score: Callable[[Array, Array], Array]  # (outputs, truth) -> scores, shape (n,)

    def drop(self, original: Array, variant: Array, *, confidence: float) -> bounds.Drop:
        """Paired drop of the mean score with its bounds."""
        if self.binary:
            return bounds.paired_drop(original, variant, confidence=confidence)
        return bounds.mean_drop(original, variant, confidence=confidence, span=self.span)


def probabilities(outputs: Array) -> Array:
    """Class probabilities along the last axis: as given when they are, else by softmax."""
    values = np.asarray(outputs, dtype=np.float64)
    sums = values.sum(axis=-1)
    if (values >= 0.0).all() and (np.abs(sums - 1.0) <= _SUM_SLACK).all():
        return values
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def top_class(outputs: Array) -> tuple[Array, Array]:
    """Most probable class and its probability per sample."""
    shares = probabilities(outputs)
    best = shares.argmax(axis=-1)
    return best, np.take_along_axis(shares, best[..., None], axis=-1)[..., 0]


def top_of_row(row: Array) -> tuple[int, float]:
    """`top_class` of one row, without its cost: it runs in every inference. (-1, NaN) for NaN."""
    best = int(row.argmax())
    total = float(np.add.reduce(row, dtype=np.float64))
    if not math.isfinite(total):
        return -1, math.nan
    if abs(total - 1.0) <= _SUM_SLACK and np.minimum.reduce(row) >= 0:
        return best, float(row[best])
    values = row.astype(np.float64)
    return best, float(1.0 / np.add.reduce(np.exp(values - values[best])))


def _top1(outputs: Array, truth: Array) -> Array:
    right: Array = outputs.argmax(axis=-1) == truth.reshape(outputs.shape[:-1])
    # A row with NaN has no answer: argmax would return the NaN's index as if it were one.
    answered: Array = right & np.isfinite(outputs).all(axis=-1)
    return np.asarray(answered.reshape(len(outputs), -1).all(axis=1), dtype=bool)


def _agreement(outputs: Array, truth: Array) -> Array:
    return _top1(outputs, truth.argmax(axis=-1))


def _cosine(outputs: Array, truth: Array) -> Array:
    a = np.asarray(outputs, dtype=np.float64).reshape(len(outputs), -1)
    b = np.asarray(truth, dtype=np.float64).reshape(len(truth), -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    dots = (a * b).sum(axis=1)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    finite = np.isfinite(a).all(axis=1)
    result: Array = np.where(same, 1.0, np.where(finite, cosines, -1.0))
    return np.clip(result, -1.0, 1.0)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", binary=True, span=1.0, needs_labels=True, score=_top1),
        Metric("agreement", binary=True, span=1.0, needs_labels=False, score=_agreement),
        Metric("cosine", binary=False, span=2.0, needs_labels=False, score=_cosine),
    )
}
