"""Sets of integers kept as disjoint closed intervals: acknowledged and seen frame numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """Mutable set of integers; adjacent intervals merge, so a gap-free history is one pair."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._pairs: list[tuple[int, int]] = []
        for first, last in pairs:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> None:
        """Add ``first`` .. ``last`` inclusive (one number when ``last`` is None)."""
        last = first if last is None else last
        if last < first:
            raise ValueError(f"empty interval {first}..{last}")
        keep_left = bisect_right(self._pairs, first - 1, key=lambda pair: pair[1] + 1)
        # keep_left counts pairs that end before first - 1, i.e. neither overlap nor touch.
        while keep_left > 0 and self._pairs[keep_left - 1][1] >= first - 1:
            keep_left -= 1
        end = keep_left
        while end < len(self._pairs) and self._pairs[end][0] <= last + 1:
            first, last = min(first, self._pairs[end][0]), max(last, self._pairs[end][1])
            end += 1
        self._pairs[keep_left:end] = [(first, last)]

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._pairs, number, key=lambda pair: pair[0]) - 1
        return index >= 0 and self._pairs[index][1] >= number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        """How many numbers are in the set."""
        return sum(last - first + 1 for first, last in self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._pairs == other._pairs

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"IntervalSet({self._pairs})"

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The intervals, ascending."""
        return tuple(self._pairs)

    def first_gap(self, start: int) -> int:
        """Smallest number >= ``start`` that is not in the set."""
        index = bisect_right(self._pairs, start, key=lambda pair: pair[0]) - 1
        if index >= 0 and self._pairs[index][1] >= start:
            return self._pairs[index][1] + 1
        return start
