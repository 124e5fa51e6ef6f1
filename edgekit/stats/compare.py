"""Comparison of outputs: of a golden set's replay with its record, of a candidate with what serves.

The device's shadow and the build's expectation of it are one implementation: `agreeing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts.contract import OutputSpec, Task
from edgekit.contracts.golden import Tolerance
from edgekit.contracts.verdict import Outcome, Verdict, not_measured
from edgekit.stats.metrics import METRICS, SCORE_MIN

Array = npt.NDArray[Any]
METRIC = "golden_agreement"
BOXES_F1_MIN = 0.75  # of two lists of boxes that count as the same answer


def golden(
    expected: Mapping[str, Array], actual: Mapping[str, Array], tolerance: Tolerance
) -> Verdict:
    """Share of samples whose every output element is within tolerance.

    Args:
        expected: recorded outputs by tensor name, first axis the sample.
        actual: replayed outputs, same names and shapes.
        tolerance: bounds per element and the least share of samples.
    """
    if not expected:
        return not_measured(METRIC, "the golden set has no outputs")
    samples = min(len(values) for values in expected.values())
    if samples == 0:
        return not_measured(METRIC, "the golden set has no samples")
    within = np.ones(samples, dtype=bool)
    worst = 0.0
    for name, reference in expected.items():
        found = actual.get(name)
        if found is None or found.shape != reference.shape:
            shape = "missing" if found is None else f"shape {found.shape}"
            return not_measured(METRIC, f"output {name!r}: {shape}, expected {reference.shape}")
        error: Array = np.abs(found.astype(np.float64) - reference.astype(np.float64))
        limit: Array = tolerance.abs + tolerance.rel * np.abs(reference.astype(np.float64))
        # NaN compares false, so an output that turned NaN is out of tolerance.
        inside = (error <= limit).reshape(len(reference), -1)
        within &= np.asarray(inside.all(axis=1), dtype=bool)[:samples]
        worst = max(worst, float(np.nanmax(error, initial=0.0)))
    agreement = float(within.mean())
    passed = agreement >= tolerance.agreement_min
    return Verdict(
        metric=METRIC,
        outcome=Outcome.PASS if passed else Outcome.FAIL,
        reason=f"{int(within.sum())} of {samples} samples within tolerance, worst {worst:.3g}",
        threshold=tolerance.agreement_min,
        estimate=agreement,
        n=samples,
    )


def agreeing(
    specs: Sequence[OutputSpec],
    expected: Mapping[str, Array],
    actual: Mapping[str, Array],
    *,
    abs_max: float,
    rel_max: float,
) -> npt.NDArray[np.bool_]:
    """Which samples two models answer alike; the first axis of every output is the sample.

    Where an output classifies, the best class must be the same, and of outputs that do not nothing
    is asked then: scores may move. Boxes must overlap. Everything else must lie within
    ``abs_max + rel_max * |expected|`` in every element. What is missing, of another shape or not a
    number never agrees.
    """
    classes = [spec for spec in specs if spec.task is Task.CLASSIFICATION]
    samples = max((len(values) for values in expected.values() if values.ndim), default=0)
    alike = np.ones(samples, dtype=bool)
    for spec in classes or specs:
        before, after = expected.get(spec.name), actual.get(spec.name)
        if before is None or after is None or before.shape != after.shape or not before.ndim:
            return np.zeros(samples, dtype=bool)
        if spec.task is Task.CLASSIFICATION:
            alike &= np.asarray(METRICS["agreement"].score(after, before), dtype=bool)
        elif spec.task is Task.DETECTION and before.ndim == 3 and before.shape[-1] >= 6:
            alike &= _same_boxes(before, after)
        else:
            wanted = before.astype(np.float64)
            inside = np.abs(after.astype(np.float64) - wanted) <= abs_max + rel_max * np.abs(wanted)
            alike &= np.asarray(inside.reshape(len(inside), -1).all(axis=1), dtype=bool)
    return alike


def _same_boxes(before: Array, after: Array) -> npt.NDArray[np.bool_]:
    """Rows of x1, y1, x2, y2, score, class; what was answered before is taken for the truth."""
    metric = METRICS["iou_f1"]
    truth = np.concatenate([before[..., :4], before[..., 5:6]], axis=-1)
    kept = np.isfinite(before).all(axis=-1) & (before[..., 4] >= SCORE_MIN)
    truth[~kept] = -1.0
    f1 = metric.aggregate(np.asarray(metric.score(after, truth), dtype=np.float64))
    return np.asarray((f1 >= BOXES_F1_MIN) & np.isfinite(after).all(axis=(1, 2)), dtype=bool)
