"""Confidence bounds for build gates: how much quality may a variant have lost?

Two bounds valid for every sample size (no normal approximation), and one for everything else:

* `paired_drop` for scores that are right or wrong (top-1): exact Clopper-Pearson limits on the two
  kinds of discordant pairs, joined by Bonferroni. Source: Clopper & Pearson, Biometrika 26 (1934).
* `mean_drop` for any per-sample score in a known range: empirical Bernstein. Source: Maurer &
  Pontil, COLT 2009, theorem 4.
* `bootstrap_drop` for metrics of unbounded or pooled scores: paired percentile bootstrap, which
  holds for many samples only. Source: Efron & Tibshirani, An Introduction to the Bootstrap, ch. 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgekit.stats.special import beta_quantile

_RESAMPLES = 1000  # the 95 % quantile of fewer wobbles in its second digit
_RESAMPLES_AT_ONCE = 100  # bounds memory: this many weights per sample
BOOTSTRAP_SAMPLES_MIN = 30  # below, resampling says nothing about what was not sampled

Scores = npt.NDArray[np.floating] | npt.NDArray[np.integer] | npt.NDArray[np.bool_]


class Bound(str, Enum):
    """How the bounds of a drop are found."""

    EXACT = "exact"
    BERNSTEIN = "bernstein"
    BOOTSTRAP = "bootstrap"


_FIRST_LOOK = 0.75  # of the error allowed: the first choice nearly always is the last one


def spent(confidence: float, look: int) -> float:
    """Confidence that look number ``look`` (from 0) at the same data has to reach.

    When a candidate fails, the next one is judged on samples that have been seen. So the error
    allowed in all, ``1 - confidence``, is divided: three quarters for the first look, three
    quarters of the rest for the second, and so on. By Bonferroni's inequality the looks together
    miss with at most that error, however many there are.
    """
    left = (1.0 - _FIRST_LOOK) ** look
    return 1.0 - (1.0 - confidence) * _FIRST_LOOK * left


class Drop(msgspec.Struct, frozen=True):
    """Quality lost by the variant: positive is worse. ``upper`` holds at the asked confidence."""

    estimate: float
    lower: float
    upper: float
    n: int


def clopper_pearson(k: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact limits for a share: each side is missed with probability at most ``alpha``."""
    low = 0.0 if k == 0 else beta_quantile(alpha, k, n - k + 1)
    high = 1.0 if k == n else beta_quantile(1.0 - alpha, k + 1, n - k)
    return low, high


def paired_drop(original: Scores, variant: Scores, *, confidence: float) -> Drop:
    """Drop in the share of correct answers on the same ``n`` samples.

    Args:
        original: correct (1) or not (0) per sample, shape (n,).
        variant: the same for the variant, in the same order.
        confidence: one-sided level of each bound, e.g. 0.95.

    Raises:
        ValueError: shapes differ or there are no samples.
    """
    before, after = np.asarray(original, dtype=bool), np.asarray(variant, dtype=bool)
    if before.shape != after.shape or before.ndim != 1 or before.size == 0:
        raise ValueError(f"paired scores of shapes {before.shape} and {after.shape}")
    n = int(before.size)
    lost = int(np.count_nonzero(before & ~after))
    gained = int(np.count_nonzero(~before & after))
    alpha = (1.0 - confidence) / 2.0  # Bonferroni over the two shares
    lost_low, lost_high = clopper_pearson(lost, n, alpha)
    gained_low, gained_high = clopper_pearson(gained, n, alpha)
    return Drop(
        (lost - gained) / n, max(-1.0, lost_low - gained_high), min(1.0, lost_high - gained_low), n
    )


def mean_drop(
    original: npt.NDArray[np.floating],
    variant: npt.NDArray[np.floating],
    *,
    confidence: float,
    span: float = 1.0,
) -> Drop:
    """Drop in the mean of per-sample scores that lie in a range of width ``span``.

    Raises:
        ValueError: shapes differ, fewer than two samples, or a score that is not finite.
    """
    before, after = np.asarray(original, dtype=float), np.asarray(variant, dtype=float)
    if before.shape != after.shape or before.ndim != 1 or before.size < 2:
        raise ValueError(f"paired scores of shapes {before.shape} and {after.shape}")
    loss = before - after
    if not np.isfinite(loss).all():
        raise ValueError("a score is not finite")
    n = int(loss.size)
    log_term = math.log(2.0 / (1.0 - confidence))
    # Differences of two scores in a range of width span lie in a range of width 2 span.
    spread = math.sqrt(2.0 * float(loss.var(ddof=1)) * log_term / n)
    margin = spread + 7.0 * (2.0 * span) * log_term / (3.0 * (n - 1))
    estimate = float(loss.mean())
    return Drop(estimate, estimate - margin, estimate + margin, n)


def bootstrap_drop(
    original: npt.NDArray[Any],
    variant: npt.NDArray[Any],
    aggregate: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    *,
    confidence: float,
    floor: float = 0.0,
) -> Drop:
    """Drop of a metric of score rows, by resampling pairs; the same resamples in every run.

    Args:
        original: score rows, shape (n, k).
        variant: the same for the variant, in the same order.
        aggregate: means of rows, shape (…, k), to values of the metric, shape (…).
        confidence: one-sided level of each bound.
        floor: least margin: what a sample without any loss does not exclude.

    Raises:
        ValueError: shapes differ, or there are fewer than two samples.
    """
    if original.shape != variant.shape or original.ndim != 2 or len(original) < 2:
        raise ValueError(f"paired scores of shapes {original.shape} and {variant.shape}")
    n = len(original)
    rng = np.random.default_rng(n)
    estimate = float(aggregate(original.mean(axis=0)) - aggregate(variant.mean(axis=0)))
    drops = []
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        # Counting drawn rows is a multinomial draw, and seven times as fast as numpy's own.
        rows = rng.integers(n, size=(_RESAMPLES_AT_ONCE, n))
        weights = np.stack([np.bincount(drawn, minlength=n) for drawn in rows]) / n
        drops.append(aggregate(weights @ original) - aggregate(weights @ variant))
    low, high = np.quantile(np.concatenate(drops), (1.0 - confidence, confidence))
    return Drop(estimate, min(float(low), estimate - floor), max(float(high), estimate + floor), n)


def samples_to_resolve(drop_max: float, confidence: float) -> int:
    """Samples below which even a variant without one lost answer exceeds ``drop_max``.

    From the Clopper-Pearson limit at k = 0, with the Bonferroni share of `paired_drop`:
    1 - (alpha/2)**(1/n) <= drop_max.
    """
    alpha = (1.0 - confidence) / 2.0
    if drop_max >= 1.0:
        return 1
    return math.ceil(math.log(alpha) / math.log1p(-drop_max))


def mean_samples_to_resolve(drop_max: float, confidence: float, *, span: float) -> int:
    """Samples below which `mean_drop` exceeds ``drop_max`` even when no score changes.

    From the empirical Bernstein margin at variance 0.
    """
    log_term = math.log(2.0 / (1.0 - confidence))
    return 1 + math.ceil(7.0 * (2.0 * span) * log_term / (3.0 * drop_max))
