"""Frozen bins: edges are fixed at build time, so that counts from any device and time add up."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import numpy.typing as npt


class Bins(msgspec.Struct, frozen=True):
    """Half-open bins ``[edges[i], edges[i+1])`` with an under- and an overflow bin and one for NaN.

    Counts therefore have ``len(edges) + 2`` entries: under, the inner bins, over, NaN.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.asarray(self.edges, dtype=float)
        if values.size < 2 or not np.isfinite(values).all() or not (np.diff(values) > 0).all():
            raise ValueError("bin edges must be at least two finite, strictly increasing numbers")

    @property
    def size(self) -> int:
        """Number of count entries."""
        return len(self.edges) + 2

    @property
    def digest(self) -> str:
        """Identifies the edges; counts of different digests must never be merged."""
        packed = np.asarray(self.edges, dtype="<f8").tobytes()
        return hashlib.sha256(packed).hexdigest()[:16]

    def count(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """Counts of ``values`` (any shape)."""
        flat = np.asarray(values, dtype=float).ravel()
        nan = np.isnan(flat)
        where = np.searchsorted(np.asarray(self.edges), flat[~nan], side="right")
        counts = np.bincount(where, minlength=self.size - 1).astype(np.int64)
        return np.append(counts, np.int64(np.count_nonzero(nan)))


def quantile_bins(reference: npt.NDArray[np.floating], bins: int = 20) -> Bins:
    """Bins that hold equal shares of ``reference``; ties are merged.

    Raises:
        ValueError: no finite value, or all values equal.
    """
    finite = np.asarray(reference, dtype=float).ravel()
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        raise ValueError("no finite reference value")
    edges = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, bins + 1)))
    if edges.size < 2:
        raise ValueError("all reference values are equal")
    return Bins(tuple(float(edge) for edge in edges))


CONFIDENCE_BINS = Bins(tuple(float(v) for v in np.linspace(0.0, 1.0, 21)))
