"""Quality metrics as per-sample scores, so that original and variant can be compared in pairs.

`Metric.score` gives a number or a row of numbers per sample, `Metric.value` the metric of many
scores; higher is better. Which bound a drop gets depends on the scores: right-or-wrong the exact
one, a known range empirical Bernstein, everything else the paired bootstrap.

A metric of your own is named ``module:function``: ``function(outputs, truth)`` returns one score
per sample, higher is better. It is imported where builds run, never on devices.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgekit.contracts.errors import BadInputError
from edgekit.stats import bounds

Array = npt.NDArray[Any]
# How far from one shares may sum: a softmax quantized to eight bits rounds each class by up to
# 1/512. Taken for scores, its shares would be squashed to a confidence of about 0.7.
_SUM_SLACK = 0.05
SCORE_MIN, _OVERLAP_MIN = 0.5, 0.5  # of a detection that counts, and of one that is right
_FEW = 64
LABELS = "labels"  # name of the array that holds the truth in a data set
SLICE = "slice"  # name of the array that says which slice a sample belongs to


class Truth(str, Enum):
    """What a metric compares outputs with."""

    ORIGINAL = "original"  # the original model's own output
    CLASSES = "classes"  # integers, one per sample or position
    VALUES = "values"  # numbers shaped like the output


def _mean(sums: Array) -> Array:
    return sums[..., 0]


class Metric(msgspec.Struct, frozen=True):
    """One metric. ``aggregate`` maps means of score rows, shape (…, k), to values, shape (…)."""

    name: str
    bound: bounds.Bound
    truth: Truth
    score: Callable[[Array, Array], Array]  # (outputs, truth) -> scores, shape (n,) or (n, k)
    span: float = 1.0
    aggregate: Callable[[Array], Array] = _mean
    floor: Callable[[Array, float], float] | None = None  # (scores, alpha) -> least margin

    @property
    def needs_labels(self) -> bool:
        """Whether the data set must carry the truth."""
        return self.truth is not Truth.ORIGINAL

    def value(self, scores: Array) -> float:
        """The metric over all samples."""
        return float(self.aggregate(_rows(scores).mean(axis=0)))

    def drop(self, original: Array, variant: Array, *, confidence: float) -> bounds.Drop:
        """Paired drop of the metric with its bounds."""
        if self.bound is bounds.Bound.EXACT:
            return bounds.paired_drop(original, variant, confidence=confidence)
        if self.bound is bounds.Bound.BERNSTEIN:
            return bounds.mean_drop(original, variant, confidence=confidence, span=self.span)
        floor = self.floor(_rows(original), 1.0 - confidence) if self.floor else 0.0
        return bounds.bootstrap_drop(
            _rows(original), _rows(variant), self.aggregate, confidence=confidence, floor=floor
        )


def _rows(scores: Array) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def probabilities(outputs: Array) -> Array:
    """Class probabilities along the last axis: as given (summing to one), else by softmax."""
    values = np.asarray(outputs, dtype=np.float64)
    sums = values.sum(axis=-1, keepdims=True)
    if (values >= 0.0).all() and (np.abs(sums - 1.0) <= _SUM_SLACK).all():
        given: Array = values / sums
        return given
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
    if row.size <= _FEW:  # plain numbers beat the overhead of five calls into numpy
        return _top_of_few(row.tolist())
    best = int(row.argmax())
    total = float(np.add.reduce(row, dtype=np.float64))
    if not math.isfinite(total):
        return -1, math.nan
    if abs(total - 1.0) <= _SUM_SLACK and np.minimum.reduce(row) >= 0:
        return best, float(row[best]) / total
    values = row.astype(np.float64)
    return best, float(1.0 / np.add.reduce(np.exp(values - values[best])))


def _top_of_few(row: list[float]) -> tuple[int, float]:
    total = sum(row)
    if not math.isfinite(total):
        return -1, math.nan
    most = max(row)
    best = row.index(most)
    if abs(total - 1.0) <= _SUM_SLACK and min(row) >= 0:
        return best, most / total
    return best, 1.0 / sum(math.exp(value - most) for value in row)


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
    same = (a == b).all(axis=1)
    finite: Array = np.asarray(np.isfinite(a).all(axis=1))
    a = np.where(finite[:, None], a, 0.0)  # what is no number is judged below, not multiplied
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    result: Array = np.where(same, 1.0, np.where(finite, cosines, -1.0))
    return np.clip(result, -1.0, 1.0)


def _exact(outputs: Array, truth: Array) -> Array:
    """Every element right: of class scores the best one, of anything else the value itself."""
    if outputs.ndim == truth.ndim + 1 and outputs.dtype.kind == "f":
        return _top1(outputs, truth)
    same: Array = (outputs == truth.reshape(outputs.shape)).reshape(len(outputs), -1)
    return np.asarray(same.all(axis=1), dtype=bool)


def _f1_rows(outputs: Array, truth: Array) -> Array:
    """Per class: hit, answered, true; shape (n, 3 * classes)."""
    classes = np.arange(outputs.shape[-1])
    answers = np.where(np.isfinite(outputs).all(axis=-1), outputs.argmax(axis=-1), -1)
    answered = answers.reshape(len(outputs), -1, 1) == classes
    true = truth.reshape(len(outputs), -1, 1) == classes
    parts = [part.sum(axis=1) for part in (answered & true, answered, true)]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _macro_f1(means: Array) -> Array:
    """Mean F1 over the classes that occur in the truth."""
    hit, answered, true = np.split(means, 3, axis=-1)
    total = answered + true
    scores = np.divide(2.0 * hit, total, out=np.zeros_like(hit), where=total > 0)
    present = true > 0
    result: Array = (scores * present).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return result


def _f1_floor(rows: Array, alpha: float) -> float:
    """What a class of n samples may have lost unseen: 1 - alpha**(1/n), mean over classes."""
    true = np.split(rows, 3, axis=1)[2].sum(axis=0)
    return float(np.mean(1.0 - alpha ** (1.0 / true[true > 0]))) if (true > 0).any() else 1.0


def _boxes_rows(outputs: Array, truth: Array) -> Array:
    """Per sample: boxes found right, boxes answered, boxes there; shape (n, 3).

    Answers are rows of x1, y1, x2, y2, score, class, of which those with a score of `SCORE_MIN`
    count; the truth rows of x1, y1, x2, y2, class, filled up with class -1. A box is right when it
    overlaps one of its class that no better scored box has taken by `_OVERLAP_MIN`.
    """
    rows = np.zeros((len(outputs), 3))
    for index, (answers, wanted) in enumerate(zip(outputs, truth, strict=True)):
        kept = answers[np.isfinite(answers).all(axis=-1) & (answers[:, 4] >= SCORE_MIN)]
        there = wanted[wanted[:, 4] >= 0]
        free = np.ones(len(there), dtype=bool)
        for box in kept[np.argsort(-kept[:, 4], kind="stable")]:
            overlaps = _overlaps(box[:4], there[:, :4]) * (free & (there[:, 4] == box[5]))
            if overlaps.size and overlaps.max() >= _OVERLAP_MIN:
                free[int(overlaps.argmax())] = False
                rows[index, 0] += 1
        rows[index, 1:] = len(kept), len(there)
    return rows


def _overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of ``box`` with each of ``others``."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=1)
    area = np.clip(others[:, 2:] - others[:, :2], 0.0, None).prod(axis=1)
    both = area + np.clip(box[2:] - box[:2], 0.0, None).prod() - shared
    result: Array = np.divide(shared, both, out=np.zeros_like(shared), where=both > 0)
    return result


def _boxes_f1(means: Array) -> Array:
    hit, total = means[..., 0], means[..., 1] + means[..., 2]
    result: Array = np.divide(2.0 * hit, total, out=np.ones_like(hit), where=total > 0)
    return result


def _errors(outputs: Array, truth: Array) -> Array:
    flat = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    wanted = np.asarray(truth, np.float64).reshape(flat.shape)
    # An answer that is no number is as wrong as an answer can be, and still a number to average.
    return np.nan_to_num(flat - wanted, nan=1e30, posinf=1e30, neginf=-1e30)


def _mae(outputs: Array, truth: Array) -> Array:
    result: Array = -np.abs(_errors(outputs, truth)).mean(axis=1)
    return result


def _r2_rows(outputs: Array, truth: Array) -> Array:
    """Squared error, truth and its square, from which the share of variance follows."""
    wanted = np.asarray(truth, np.float64).reshape(len(truth), -1)
    parts = (_errors(outputs, truth) ** 2, wanted, wanted**2)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def _r2(means: Array) -> Array:
    squared, mean, square = means[..., 0], means[..., 1], means[..., 2]
    variance = square - mean**2
    result: Array = 1.0 - np.divide(
        squared, variance, out=np.full_like(squared, np.inf), where=variance > 0
    )
    return result


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", bounds.Bound.EXACT, Truth.CLASSES, _top1),
        Metric("exact_match", bounds.Bound.EXACT, Truth.CLASSES, _exact),
        Metric("agreement", bounds.Bound.EXACT, Truth.ORIGINAL, _agreement),
        Metric("cosine", bounds.Bound.BERNSTEIN, Truth.ORIGINAL, _cosine, span=2.0),
        Metric(
            "macro_f1",
            bounds.Bound.BOOTSTRAP,
            Truth.CLASSES,
            _f1_rows,
            aggregate=_macro_f1,
            floor=_f1_floor,
        ),
        Metric("iou_f1", bounds.Bound.BOOTSTRAP, Truth.VALUES, _boxes_rows, aggregate=_boxes_f1),
        Metric("mae", bounds.Bound.BOOTSTRAP, Truth.VALUES, _mae),
        Metric("r2", bounds.Bound.BOOTSTRAP, Truth.VALUES, _r2_rows, aggregate=_r2),
    )
}


def metric_of(name: str) -> Metric:
    """The metric called ``name``, or the user's own, ``module:function``.

    Raises:
        BadInputError: not known, or it cannot be imported.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise BadInputError(
            f"contract: quality.metric: {name!r} is not known",
            hint="known metrics: " + ", ".join(sorted(METRICS)) + ", or module:function",
        )
    try:
        score = getattr(importlib.import_module(module), function)
    except Exception as exc:  # foreign code runs at import
        raise BadInputError(
            f"contract: quality.metric: {name!r} cannot be imported: {exc}",
            hint="put the module on PYTHONPATH; function(outputs, truth) gives a score per sample",
        ) from exc
    return Metric(name, bounds.Bound.BOOTSTRAP, Truth.VALUES, _checked(name, score))


def _checked(name: str, score: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Array]:
    def call(outputs: Array, truth: Array) -> Array:
        try:
            found = np.asarray(score(outputs, truth), dtype=np.float64)
        except Exception as exc:  # the user's code raises whatever it likes
            raise BadInputError(
                f"metric {name}: {type(exc).__name__}: {exc}", hint="correct the function"
            ) from exc
        if found.shape != (len(outputs),) or not np.isfinite(found).all():
            raise BadInputError(
                f"metric {name}: gave shape {found.shape} for {len(outputs)} samples, or no number",
                hint="return one finite score per sample",
            )
        return found

    return call
