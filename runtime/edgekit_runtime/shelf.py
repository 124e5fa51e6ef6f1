"""Shelf: the regions of one model on the agent's side, and which of them a worker has been lent."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from edgekit_runtime import leases
from edgekit_runtime.region import Region

OLD_REGIONS_MAX = 4  # kept for re-sent ids and late labels; each is 344 KiB


class Shelf:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: list[Region] = []
        self._lent: dict[str, list[Region]] = {}  # by borrower: it may write to these
        self._newest_loan: dict[str, list[Region]] = {}

    def add(self, region: Region) -> None:
        """Make ``region`` known; the newest is last."""
        with self._lock:
            self._regions.append(region)

    def regions(self) -> list[Region]:
        """Oldest first."""
        with self._lock:
            return list(self._regions)

    def lend(self, current: Region, borrower: str = "first") -> Sequence[Region]:
        """What a worker that counts in ``current`` is to know: that, and the newest few others.

        A worker writes labels that arrive late into those, so none where an application counts.
        """
        with self._lock:
            others = [region for region in reversed(self._regions) if region is not current]
            others = [region for region in others if not leased(region)]
            newest = self._newest_loan[borrower] = [current, *others[:OLD_REGIONS_MAX]]
            self._lent.setdefault(borrower, []).extend(newest)
            return tuple(newest)

    def newest(self, current: Region) -> list[Region]:
        """The newest few regions but ``current``: where an application finds earlier ids."""
        with self._lock:
            others = [region for region in reversed(self._regions) if region is not current]
            return others[:OLD_REGIONS_MAX]

    def loan_taken(self, borrower: str = "first") -> None:
        """The worker uses its newest loan, and no earlier one any more."""
        with self._lock:
            self._lent[borrower] = list(self._newest_loan.get(borrower, ()))

    def loan_returned(self, borrower: str = "first") -> None:
        """That worker counts no more."""
        with self._lock:
            self._lent.pop(borrower, None)

    def retire(self, keep: Region | None) -> list[Region]:
        """Drop and return drained regions beyond the newest few, but ``keep`` and what is lent."""
        with self._lock:
            idle = [
                region
                for region in self._regions
                if region is not keep
                and not leased(region)
                and region.head == region.tail
                and region.overflow[0] == region.overflow[1]
            ]
            gone = idle[: max(0, len(idle) - OLD_REGIONS_MAX)]
            lent = [region for loans in self._lent.values() for region in loans]
            gone = [region for region in gone if region not in lent]
            self._regions = [region for region in self._regions if region not in gone]
            return gone


def leased(region: Region) -> bool:
    """Whether an application counts in ``region``."""
    return bool(region.labels.session) and leases.held(region.path)
