"""Screen: says quickly that an input is in perfect order, which is nearly always. The hot path.

What it does not pass goes to `guard.check`, which says what is wrong; the two agree because the
screen only passes what cannot break any rule (a property test holds them against each other).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgekit.contracts.contract import Contract, InputSpec
from edgekit_runtime.ports import Array

FEW = 64  # elements: below, plain numbers beat the overhead of calls into numpy


class _Entry(NamedTuple):
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]  # after the batch axis, when that is dynamic
    batched: bool
    low: float
    high: float
    ranged: bool
    floats: bool


class Screen:
    """Made once for a contract."""

    def __init__(self, contract: Contract) -> None:
        self._entries = [_entry(spec) for spec in contract.inputs]
        # Dynamic axes that have to agree, or lie further in, are left to the guard.
        inner = any(isinstance(dim, str) for spec in contract.inputs for dim in spec.shape[1:])
        self._usable = not inner and sum(entry.batched for entry in self._entries) < 2

    def passes(self, arrays: Mapping[str, Array]) -> bool:
        """Whether every rule is kept for sure."""
        if len(arrays) != len(self._entries) or not self._usable:
            return False
        for entry in self._entries:
            array = arrays.get(entry.name)
            if array is None or array.dtype != entry.dtype:
                return False
            shape = array.shape
            if entry.batched:
                if shape[1:] != entry.shape or not shape or shape[0] == 0:
                    return False
            elif shape != entry.shape:
                return False
            if not _keeps(entry, array):
                return False
        return True


def _keeps(entry: _Entry, array: Array) -> bool:
    """Whether every value is finite and in range, for sure."""
    if array.size <= FEW:
        values = array.reshape(-1).tolist()
        if entry.floats and not math.isfinite(sum(values)):
            return False  # not finite, or a sum that overflowed
        return not entry.ranged or (min(values) >= entry.low and max(values) <= entry.high)
    if entry.ranged:
        # NaN propagates through both, and compares false.
        least, most = np.minimum.reduce(array, None), np.maximum.reduce(array, None)
        return bool(least >= entry.low and most <= entry.high)
    return not entry.floats or math.isfinite(_sum(array))


def _entry(spec: InputSpec) -> _Entry:
    low, high = spec.range if spec.range is not None else (-math.inf, math.inf)
    batched = isinstance(spec.shape[0], str)
    dtype = np.dtype(spec.dtype)
    shape = tuple(dim for dim in spec.shape if isinstance(dim, int))
    if spec.range is not None and dtype.kind == "f":
        # As numpy compares arrays with a number: in the array's own precision.
        low, high = float(dtype.type(low)), float(dtype.type(high))
    ranged = spec.range is not None
    return _Entry(spec.name, dtype, shape, batched, low, high, ranged, dtype.kind == "f")


def all_finite(values: Array) -> bool:
    """Whether nothing in an array of floats is NaN or infinite; both survive a sum."""
    few = values.size <= FEW
    total = sum(values.reshape(-1).tolist()) if few else _sum(values)
    # Only a sum that overflows has to be looked at again.
    return math.isfinite(total) or bool(np.isfinite(values).all())


def _sum(values: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.add.reduce(values, None))
