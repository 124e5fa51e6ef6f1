"""Probes: one number each from an inference, and the frozen bin it falls into.

One implementation for the builder, which fixes the bins, and for the device, which counts by them.
Everything works in single precision. `Taker` is the hot path: it takes a few microseconds for 32
probes.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts.reference import Probe, ProbeGroup, ProbeKind
from edgekit.stats.bins import CONFIDENCE_BINS

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
SAMPLE_MAX = 256  # elements that a summary looks at; more cost cache misses, fewer are noisy
BINS, BINS_OF_MANY = 20, 10  # a window must stay near a kilobyte
MANY = 16  # probes
_SINGLE = np.dtype(np.float32)
_VALUES = ProbeKind.VALUES


def digest(groups: Sequence[ProbeGroup]) -> str:
    """Identifies all edges of a variant, those of the confidence included."""
    if not groups:
        return CONFIDENCE_BINS.digest
    text = CONFIDENCE_BINS.digest
    for group in groups:
        text += f"|{group.side.value} {group.tensor} {group.kind.value} {group.whole}"
        text += "".join(f" {probe.name}:{probe.edges}" for probe in group.probes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample_of(array: Array, *, whole: bool) -> Array:
    """The first sample of a tensor, flat. A one-dimensional batch holds one number a sample."""
    if whole:
        return array.reshape(-1)
    first = array[0]
    return first.reshape(-1) if first.ndim else array[:1]


def figures(sample: Array, kind: ProbeKind) -> Floats:
    """The numbers of one flat sample, one for each probe of a group."""
    if kind is ProbeKind.VALUES:
        return sample.astype(np.float32)
    if kind is ProbeKind.NORM:
        values = sample.astype(np.float32, copy=False)
        return np.array([math.sqrt(float(np.dot(values, values)))], dtype=np.float32)
    values = sample[:: max(1, sample.size // SAMPLE_MAX)].astype(np.float32)
    mean = float(np.add.reduce(values)) / values.size
    square = float(np.dot(values, values)) / values.size
    spread = square - mean * mean
    # max() would turn the NaN of an infinite input into zero.
    return np.array([mean, math.sqrt(spread) if spread > 0 else spread * 0.0], dtype=np.float32)


def frozen(name: str, values: Floats, bins: int = BINS) -> Probe:
    """Bins of equal shares of ``values``; what is constant gets a bin for exactly that."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return Probe(name=name, edges=(0.0, 1.0))
    edges = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, bins + 1)).astype(np.float32))
    if edges.size < 2:
        edges = np.array([edges[0], np.nextafter(edges[0], np.float32(np.inf))], dtype=np.float32)
    return Probe(name=name, edges=tuple(float(edge) for edge in edges))


class Taker:
    """Takes the numbers of some groups and finds their bins."""

    def __init__(self, groups: Sequence[ProbeGroup]) -> None:
        self.probes = [probe for group in groups for probe in group.probes]
        self._edges = [probe.edges for probe in self.probes]
        self._groups = [
            (group.tensor, group.kind, group.whole, len(group.probes)) for group in groups
        ]

    def take(self, tensors: Mapping[str, Array]) -> list[float] | None:
        """The numbers; None when a tensor is absent or has another shape than at build time."""
        numbers: list[float] = []
        for name, kind, whole, wanted in self._groups:
            array = tensors.get(name)
            if array is None or array.size == 0:
                return None
            sample = sample_of(array, whole=whole)
            if kind is not _VALUES:
                sample = figures(sample, kind)
            elif sample.dtype != _SINGLE:
                sample = sample.astype(_SINGLE)
            if sample.size != wanted:
                return None
            numbers += sample.tolist()
        return numbers

    def bins(self, numbers: list[float]) -> bytes:
        """Bin of each number. NaN lands in the highest: see `nan_bins`."""
        # For so few numbers a search each is faster than numpy's machinery, cold caches included.
        return bytes(map(bisect_right, self._edges, numbers))

    def nan_bins(self, numbers: list[float], bins: bytes) -> bytes:
        """``bins`` with NaN in the bin that is for it."""
        return bytes(
            probe.size - 1 if math.isnan(number) else found
            for probe, number, found in zip(self.probes, numbers, bins, strict=True)
        )


def count(bins: npt.NDArray[np.uint8], size: int) -> tuple[int, ...]:
    """How often each bin of one probe occurs in ``bins``; what is beyond ``size`` is left out."""
    found = np.bincount(bins, minlength=size)[:size]
    return tuple(int(number) for number in found)
