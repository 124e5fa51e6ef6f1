"""Compare two cohorts of devices when inferences on one device are not independent.

The unit of randomisation is the device, so it is the unit of analysis: each device yields one
ratio (e.g. correct / labelled) and the cohorts' means of these are compared by a t interval. More
inferences on the same device narrow its own ratio, never pretend to be more devices. Source:
Donner & Klar, "Design and Analysis of Cluster Randomization Trials in Health Research" (2000).

Standard error: the larger of Student's (pooled) and Welch's. Under the hypothesis of no effect,
random assignment makes devices exchangeable and the pooled one right; where a release spoils only
some devices, Welch's is the larger and protects the verdict. Degrees of freedom: n1 + n2 - 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.stats.special import t_quantile


@dataclass(frozen=True)
class DeviceRatio:
    """One device's share or mean of values in [0, 1]: ``total / n``."""

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


@dataclass(frozen=True)
class _Group:
    mean: float
    variance: float  # between devices, of one device's ratio
    devices: int
    n: int


def _summarise(ratios: Sequence[DeviceRatio]) -> _Group | None:
    heard = [ratio for ratio in ratios if ratio.n > 0]
    if len(heard) < 2:
        return None
    values = np.asarray([ratio.total / ratio.n for ratio in heard])
    n = sum(ratio.n for ratio in heard)
    # Few devices can agree by chance to the last digit; the interval must not collapse to a point.
    # No ratio of n values is known better than binomial sampling allows (Laplace's estimate keeps
    # the share inside (0, 1)).
    share = (sum(ratio.total for ratio in heard) + 1.0) / (n + 2.0)
    floor = share * (1.0 - share) * float(np.mean([1.0 / ratio.n for ratio in heard]))
    variance = max(float(values.var(ddof=1)), floor)
    return _Group(float(values.mean()), variance, len(heard), n)


def difference(
    candidate: Sequence[DeviceRatio], control: Sequence[DeviceRatio], *, alpha: float
) -> Difference | None:
    """Interval for the difference of device means.

    Returns:
        None when either cohort has fewer than two devices with data: nothing can be said then.
    """
    first, second = _summarise(candidate), _summarise(control)
    if first is None or second is None:
        return None
    df = first.devices + second.devices - 2
    pooled = ((first.devices - 1) * first.variance + (second.devices - 1) * second.variance) / df
    student = pooled * (1.0 / first.devices + 1.0 / second.devices)
    welch = first.variance / first.devices + second.variance / second.devices
    margin = t_quantile(1.0 - alpha / 2.0, df) * math.sqrt(max(student, welch))
    estimate = first.mean - second.mean
    return Difference(
        estimate=estimate,
        low=estimate - margin,
        high=estimate + margin,
        candidate_mean=first.mean,
        control_mean=second.mean,
        n_devices=first.devices + second.devices,
        n=first.n + second.n,
    )


def level(ratios: Sequence[DeviceRatio], *, alpha: float) -> Difference | None:
    """Interval for the mean of device ratios, as a difference from zero; None below two devices."""
    group = _summarise(ratios)
    if group is None:
        return None
    margin = t_quantile(1.0 - alpha / 2.0, group.devices - 1) * math.sqrt(
        group.variance / group.devices
    )
    return Difference(
        estimate=group.mean,
        low=group.mean - margin,
        high=group.mean + margin,
        candidate_mean=group.mean,
        control_mean=0.0,
        n_devices=group.devices,
        n=group.n,
    )
