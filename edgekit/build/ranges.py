"""Activation ranges from histograms: pure rules, memory independent of how much was counted.

A tensor's histogram is symmetric around zero (``BINS`` equal bins over [-peak, peak]), because the
entropy rule looks at magnitudes and zero must be exact in every quantized form.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgekit.build.candidates import Calibration

Array = npt.NDArray[Any]
BINS = 4096  # two halves of 2048, the resolution TensorRT's entropy calibration was published with
_BLOCK = 1 << 16  # values binned at once: they stay in the processor's cache
COARSE = 64  # bins that are kept of a tensor that feeds a weight layer
_LEVELS = 128  # magnitudes an 8-bit integer has
_STRIDE = 16  # thresholds tried: every 16th bin is 1 % of the range or less
_TAIL = 5e-5  # share cut at each end by the percentile rule: 99.99 % stay inside


class Range(msgspec.Struct, frozen=True):
    """Bounds of one tensor by each rule, and per channel where it feeds a weight layer."""

    minmax: tuple[float, float]
    entropy: tuple[float, float]
    percentile: tuple[float, float]
    low: tuple[float, ...] = ()  # per channel
    high: tuple[float, ...] = ()
    histogram: tuple[int, ...] = ()  # `COARSE` bins over [-peak, peak], for people to look at

    @property
    def peak(self) -> float:
        """The largest magnitude that was seen."""
        return max(abs(self.minmax[0]), abs(self.minmax[1]))

    def by(self, rule: Calibration) -> tuple[float, float]:
        """The bounds that ``rule`` gives."""
        bounds: tuple[float, float] = getattr(self, rule.value)
        return bounds


class Ranges(msgspec.Struct, frozen=True):
    """What calibration found: ``n`` samples over the tensors of a graph."""

    n: int
    tensors: dict[str, Range]


def count(values: Array, peak: float) -> Array:
    """Histogram of ``values`` over [-peak, peak]."""
    flat, scale = values.ravel(), np.float32(BINS / (2.0 * peak))
    counts = np.zeros(BINS, np.int64)
    for start in range(0, flat.size, _BLOCK):
        # Three times as fast as numpy's histogram, which finds bins in float64 and corrects them.
        bins = (flat[start : start + _BLOCK] * scale + np.float32(BINS / 2)).astype(np.intp)
        counts += np.bincount(np.clip(bins, 0, BINS - 1, out=bins), minlength=BINS)
    return counts


def coarse(counts: Array) -> tuple[int, ...]:
    """``counts`` in `COARSE` bins."""
    return tuple(int(n) for n in counts.reshape(COARSE, -1).sum(axis=1))


def disagreement(found: Range) -> float:
    """How far the rules differ in width, relative to all that was seen: from 0 to 1."""
    if not found.peak:
        return 0.0
    widths = [high - low for low, high in (found.by(rule) for rule in Calibration)]
    return (max(widths) - min(widths)) / max(widths) if max(widths) else 0.0


def percentile(counts: Array, peak: float) -> tuple[float, float]:
    """Bounds that leave `_TAIL` of the counts outside at either end."""
    edges = np.linspace(-peak, peak, BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    low = int(np.searchsorted(share, _TAIL, side="right"))
    high = int(np.searchsorted(share, 1.0 - _TAIL, side="left"))
    return float(edges[low]), float(edges[min(high + 1, BINS)])


def entropy(counts: Array, peak: float) -> float:
    """Threshold of magnitudes that loses least information (KL divergence) at 8 bits.

    The rule of TensorRT's entropy calibration (S. Migacz, "8-bit Inference with TensorRT", GTC
    2017): clip at a bin, requantize what is left to 128 levels, compare both distributions.
    """
    half = BINS // 2
    magnitudes = counts[half:] + counts[:half][::-1]
    width = peak / half
    best, chosen = np.inf, half
    for stop in range(_LEVELS, half + 1, _STRIDE):
        kept = magnitudes[:stop].astype(np.float64)
        clipped = kept.copy()
        clipped[-1] += magnitudes[stop:].sum()
        found = _divergence(clipped, _requantized(kept))
        if found < best:
            best, chosen = found, stop
    return float(chosen * width)


def _requantized(kept: Array) -> Array:
    """``kept`` at `_LEVELS` levels, spread back over the bins that were not empty."""
    level = (np.arange(kept.size) * _LEVELS) // kept.size
    totals = np.bincount(level, weights=kept, minlength=_LEVELS)
    filled = np.bincount(level, weights=kept > 0, minlength=_LEVELS)
    share = np.divide(totals, filled, out=np.zeros(_LEVELS), where=filled > 0)
    spread: Array = np.where(kept > 0, share[level], 0.0)
    return spread


def _divergence(reference: Array, candidate: Array) -> float:
    if not candidate.sum():
        return float("inf")
    p, q = reference / reference.sum(), candidate / candidate.sum()
    # Where the candidate is empty and the reference is not, smoothing keeps the cost finite.
    where = p > 0
    return float(np.sum(p[where] * np.log(p[where] / np.maximum(q[where], 1e-9))))


def bounds_of(
    low: float, high: float, counts: Array | None, channels: tuple[Array, Array] | None
) -> Range:
    """Bounds by every rule; without counts (a tensor that is always zero) all are alike."""
    exact = (low, high)
    lows, highs = channels or (np.empty(0), np.empty(0))
    per_channel = tuple(map(float, lows)), tuple(map(float, highs))
    peak = max(abs(low), abs(high))
    if counts is None or peak == 0.0 or not counts.sum():
        return Range(exact, exact, exact, *per_channel)
    limit = entropy(counts, peak)
    inner = percentile(counts, peak)
    return Range(
        exact,
        (max(low, -limit), min(high, limit)),
        (max(low, inner[0]), min(high, inner[1])),
        *per_channel,
    )
