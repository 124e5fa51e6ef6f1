"""Latency histogram on fixed logarithmic edges: mergeable by addition, <= 19 % relative error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Four buckets an octave from 1 us to about 67 s; bucket 0 is below, the last one above.
LATENCY_EDGES_US: tuple[float, ...] = tuple(2.0 ** (i / 4.0) for i in range(105))
LATENCY_BUCKETS = len(LATENCY_EDGES_US) + 1


def bucket(latency_us: float) -> int:
    """Index of the bucket that holds ``latency_us``."""
    if latency_us < 1.0:
        return 0
    return min(LATENCY_BUCKETS - 1, int(math.log2(latency_us) * 4.0) + 1)


def count(latencies_us: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Counts per bucket, shape (LATENCY_BUCKETS,)."""
    where = np.searchsorted(np.asarray(LATENCY_EDGES_US), latencies_us, side="right")
    return np.bincount(where, minlength=LATENCY_BUCKETS).astype(np.int64)


def quantile_us(counts: Sequence[int], q: float) -> float | None:
    """Upper edge of the bucket holding quantile ``q``; None when nothing was counted."""
    total = sum(counts)
    if total == 0:
        return None
    rank, seen = max(1, math.ceil(q * total)), 0
    for index, number in enumerate(counts):
        seen += number
        if seen >= rank:
            return LATENCY_EDGES_US[min(index, len(LATENCY_EDGES_US) - 1)]
    raise AssertionError("unreachable: rank exceeds total")
