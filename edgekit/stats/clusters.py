"""Compare two cohorts of devices when inferences on one device are not independent.

The unit of randomisation is the device, so it is the unit of analysis: each device yields one ratio
(e.g. correct / labelled) and the cohorts' means of these are compared by Welch's t interval. More
inferences on the same device narrow its own ratio, never pretend to be more devices. Source: Welch,
Biometrika 34 (1947); Donner & Klar, "Design and Analysis of Cluster Randomization Trials" (2000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.stats.special import t_quantile


@dataclass(frozen=True)
class DeviceRatio:
    """One device's share or mean: ``total / n``."""

    total: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Candidate minus control, with a two-sided interval that misses with probability alpha."""

    estimate: float
    low: float
    high: float
    candidate_mean: float
    control_mean: float
    n_devices: int
    n: int


# A ratio of n inferences is known no better than one inference allows. Cohorts of few devices can
# agree by chance to the last digit; without this floor the interval would collapse to a point.
def _variance_floor(ratios: Sequence[DeviceRatio]) -> float:
    total = sum(ratio.n for ratio in ratios)
    mean = (sum(ratio.total for ratio in ratios) + 1.0) / (total + 2.0)  # Laplace, inside (0, 1)
    shares = min(max(mean, 0.0), 1.0)
    return shares * (1.0 - shares) * float(np.mean([1.0 / ratio.n for ratio in ratios]))


def difference(
    candidate: Sequence[DeviceRatio], control: Sequence[DeviceRatio], *, alpha: float
) -> Difference | None:
    """Welch interval for the difference of device means of ratios in [0, 1].

    Returns:
        None when either cohort has fewer than two devices with data: nothing can be said then.
    """
    groups = [[ratio for ratio in group if ratio.n > 0] for group in (candidate, control)]
    if min(len(group) for group in groups) < 2:
        return None
    means, squares, freedoms = [], [], []
    for group in groups:
        values = np.asarray([ratio.total / ratio.n for ratio in group])
        variance = max(float(values.var(ddof=1)), _variance_floor(group))
        means.append(float(values.mean()))
        squares.append(variance / len(group))
        freedoms.append(len(group) - 1)
    error = sum(squares)
    df = error**2 / sum(square**2 / free for square, free in zip(squares, freedoms, strict=True))
    margin = t_quantile(1.0 - alpha / 2.0, df) * math.sqrt(error)
    estimate = means[0] - means[1]
    return Difference(
        estimate=estimate,
        low=estimate - margin,
        high=estimate + margin,
        candidate_mean=means[0],
        control_mean=means[1],
        n_devices=sum(len(group) for group in groups),
        n=sum(ratio.n for group in groups for ratio in group),
    )
