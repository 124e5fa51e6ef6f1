"""The one comparison of a golden set's replay with its recorded outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts.golden import Tolerance
from edgekit.contracts.verdict import Outcome, Verdict, not_measured

Array = npt.NDArray[Any]
METRIC = "golden_agreement"


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
