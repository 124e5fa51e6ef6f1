"""Region files of all models: opened at start, drained into the spool exactly once, retired.

Draining appends a window to the spool durably and only then moves the region's tail. A crash
between the two is mended at start: the spool tells how far each region was drained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.frames import Lane
from edgekit.contracts.messages import Window
from edgekit_runtime.beside import Beside
from edgekit_runtime.guard import Flags
from edgekit_runtime.kinds import INFERENCE_KINDS, SHADOW_KINDS, Kind
from edgekit_runtime.monitors import windows
from edgekit_runtime.ports import Clock, Disk
from edgekit_runtime.region import AGREED, CAPACITY, Labels, Region
from edgekit_runtime.shelf import Shelf, leased
from edgekit_runtime.spool import Spool

_SUFFIX = ".rgn"
DRAIN_AT = CAPACITY // 2  # a ring fuller than this is drained before its window is over
_OUTPUT_NAN = int(Flags.OUTPUT_NAN)


class ShadowCounter:
    """What a candidate has shown beside what serves, from the records of its own region."""

    def __init__(self, region: Region, position: int, started: float, before_s: float) -> None:
        """Count from ``position`` on; ``before_s``: seconds before the last start."""
        self.region = region
        self.position = position
        self._started = started
        self._before_s = before_s
        self._read = max(position, region.head - CAPACITY)
        self._seen = Beside()

    def read(self, now: float) -> Beside:
        """Figures up to now (monotonic seconds)."""
        head = self.region.settled()
        first = max(self._read, head - CAPACITY)
        found = self.region.records(first, head)[self.region.intact(first, head)]
        self._read = max(self._read, head)
        kinds, flags = found["kind"], found["flags"]
        ours = np.isin(kinds, (*SHADOW_KINDS, *INFERENCE_KINDS))
        seen = self._seen
        self._seen = Beside(
            n=seen.n + int(ours.sum()),
            agreed=seen.agreed + int((ours & ((flags & AGREED) != 0)).sum()),
            errors=seen.errors + int(np.isin(kinds, (Kind.ERROR, Kind.SHADOW_ERROR)).sum()),
            nan=seen.nan + int((ours & ((flags & _OUTPUT_NAN) != 0)).sum()),
            dropped=seen.dropped
            + int(found["cls"][np.isin(kinds, SHADOW_KINDS)].clip(min=0).sum()),
            seconds=self._before_s + now - self._started,
        )
        return self._seen


class Counting:
    """Owns the region files below ``root``; used by the control thread."""

    def __init__(self, disk: Disk, root: Path, clock: Clock, spool: Spool) -> None:
        self._disk = disk
        self._root = root
        self._clock = clock
        self._spool = spool
        self._shelves: dict[str, Shelf] = {}
        self._current: dict[str, Region] = {}
        self.notes: list[str] = []
        disk.make_dir(root)
        self._open_all()

    def shelf(self, model: str) -> Shelf:
        """The regions of ``model``; made on first use."""
        return self._shelves.setdefault(model, Shelf())

    def begin(self, labels: Labels) -> Region:
        """The region that counts under ``labels`` from now on: the one there is, or a new one.

        Raises:
            ResourceError: the disk is full.
        """
        key = _shelf_of(labels)
        shelf = self.shelf(key)
        for region in shelf.regions():
            if region.labels == labels:
                self._current[key] = region
                return region
        region = self._current[key] = self._create(labels)
        return region

    def lend(self, labels: Labels) -> Region:
        """A new region for the application that ``labels.session`` names: it has no other writer.

        Raises:
            ResourceError: the disk is full.
        """
        assert labels.session
        return self._create(labels)

    def beside(self, labels: Labels) -> list[Region]:
        """Where applications count what ``labels`` call the same slot."""
        worker = msgspec.structs.replace(labels, session="")
        return [
            region
            for region in self.shelf(labels.model).regions()
            if region.labels.session
            and msgspec.structs.replace(region.labels, session="") == worker
        ]

    def leased(self) -> list[str]:
        """Digests of bundles that an application may still run or be about to load."""
        return sorted({region.labels.digest for region in self._regions() if leased(region)})

    def _create(self, labels: Labels) -> Region:
        numbers = [int(name.removesuffix(_SUFFIX)) for name in self._names()]
        path = self._root / f"{max(numbers, default=0) + 1:08d}{_SUFFIX}"
        region = Region.create(self._disk, path, labels)
        self.shelf(_shelf_of(labels)).add(region)
        return region

    def drain(self) -> int:
        """Move everything counted so far into the spool; returns the number of windows.

        Raises:
            ResourceError: the spool cannot take a window; nothing is lost, the ring keeps it.
        """
        count = 0
        for region in self._regions():
            count += self._drain_region(region)
        return count

    def fullest(self) -> int:
        """Most undrained records in any ring."""
        return max((region.head - region.tail for region in self._regions()), default=0)

    def undrained(self) -> int:
        """Inferences counted and not yet in the spool."""
        return sum(_undrained(region) for region in self._regions())

    def produced(self) -> int:
        """Inferences counted since the storage began, from the rings' own running counts."""
        here = sum(region.counted for region in self._regions())
        return here + self._spool.cursor.retired_inferences

    def retire(self) -> None:
        """Remove drained regions that nothing refers to any more."""
        for model, shelf in self._shelves.items():
            gone = shelf.retire(self._current.get(model))
            if not gone:
                continue
            cursor = self._spool.cursor
            # The sum is persisted before the file goes; the name stops a crash from adding twice.
            self._spool.update_cursor(
                retired_inferences=cursor.retired_inferences + sum(r.counted for r in gone),
                retired_regions=tuple(region.region for region in gone),
            )
            for region in gone:
                region.close()
                self._disk.unlink(region.path)
            self._disk.sync_dir(self._root)

    def _regions(self) -> Iterator[Region]:
        for shelf in self._shelves.values():
            yield from shelf.regions()

    def _names(self) -> list[str]:
        names = self._disk.names(self._root)
        return [n for n in names if n.endswith(_SUFFIX) and n.removesuffix(_SUFFIX).isdigit()]

    def _open_all(self) -> None:
        for name in self._names():
            path = self._root / name
            region = self._open(path)
            if region is None:
                continue
            if region.region in self._spool.cursor.retired_regions:
                region.close()
                self._disk.unlink(path)
                continue
            self.shelf(_shelf_of(region.labels)).add(region)

    def _open(self, path: Path) -> Region | None:
        try:
            region = Region(path)
            drained = self._spool.drained.get(region.region, 0)
            beyond = self._spool.drained.get(region.region + windows.OVERFLOW_SUFFIX, 0)
        except BadInputError as exc:
            self._set_aside(path, exc.message)
            return None
        if drained > region.head or beyond > region.overflow[1]:
            region.close()
            self._set_aside(path, f"{path.name}: older than what was drained from it")
            return None
        region.advance(drained, beyond)
        return region

    def _set_aside(self, path: Path, why: str) -> None:
        """A power cut tore this region: what it still held is lost, and said to be."""
        self.notes.append(f"counter region moved aside: {why}")
        self._disk.rename(path, path.with_name(path.name + ".broken"))

    def _drain_region(self, region: Region) -> int:
        found: list[Window] = []
        now, quality = self._clock.wall(), self._clock.quality()
        first, last = region.tail, region.settled()
        if last > first:
            found.append(
                windows.aggregate(
                    region.labels,
                    region.region,
                    first,
                    region.records(first, last),
                    region.intact(first, last),
                    now=now,
                    clock=quality,
                )
            )
        lost_first, lost_last = region.overflow
        if lost_last > lost_first:
            found.append(
                windows.overflowed(
                    region.labels, region.region, lost_first, lost_last, now=now, clock=quality
                )
            )
        if found:
            self._spool.append(Lane.HEALTH, found, sync=True)
            region.advance(last, lost_last)
        return len(found)


def _shelf_of(labels: Labels) -> str:
    """Workers look request ids up in what lies on their model's shelf: shadows lie elsewhere."""
    return labels.model + ("#shadow" if labels.shadow else "")


def _undrained(region: Region) -> int:
    first, last = region.overflow
    return region.inferences(region.tail, region.head) + last - first


def peek_totals(disk: Disk, root: Path, spool: Spool) -> tuple[int, int]:
    """(produced, undrained) of a state folder, for ``status``: nothing is changed."""
    produced, undrained = spool.cursor.retired_inferences, 0
    for name in disk.names(root):
        if not name.endswith(_SUFFIX):
            continue
        try:
            region = Region(root / name, read_only=True)
        except BadInputError:
            continue
        if region.region not in spool.cursor.retired_regions:
            produced += region.counted
            drained = max(region.tail, spool.drained.get(region.region, 0))
            first, last = region.overflow
            undrained += region.inferences(min(drained, region.head), region.head) + last - first
        region.close()
    return produced, undrained
