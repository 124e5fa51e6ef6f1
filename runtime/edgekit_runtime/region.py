"""Counter region: a memory-mapped ring journal of inferences, exact through SIGKILL.

``header page | ring of fixed-size records``. The host writes a record into the slot at ``head``
and then advances ``head`` by one aligned 8-byte store: that store commits, so a record is either
wholly counted or not at all, whenever the process dies. Only the drain moves ``tail``, after the
records lie durably in the spool. When the ring is full the record is dropped and ``overflow``
advanced instead: the number stays exact, inference never waits.

``tail <= head <= tail + capacity`` always holds; positions grow for ever and are taken modulo the
capacity. Each record carries its lap and a running count, so that a power cut which lost a record's
page but kept the header's is noticed: such a record is still counted, without details.

What the monitors saw of an inference (which rules of the contract broke, the frozen bin of each
probe) lies in its record, too. Distributions are made from the records at the drain, and therefore
agree with the counts after a kill at any instruction (docs/adr/0017-monitors.md).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import weakref
import zlib
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.reference import PROBES_MAX
from edgekit_runtime.kinds import INFERENCE_KINDS, Kind
from edgekit_runtime.ports import Disk

CAPACITY = 4096
HEADER_BYTES = 8192  # its labels name up to `PROBES_MAX` probes and the rules of 21 inputs
RECORD = np.dtype(
    [
        ("request", "<u8"),  # hash of the request id, 0 when there was none
        ("time", "<f8"),  # Unix seconds
        ("latency_us", "<f4"),
        ("confidence", "<f4"),  # NaN when the output has none
        (
            "cls",
            "<i4",
        ),  # predicted class, the label that arrived or the cause of a refusal, else -1
        ("counted", "<u4"),  # inferences in this region up to and including this record
        ("lap", "<u2"),
        ("flags", "u1"),
        ("kind", "u1"),
        ("broken", "<u8"),  # rules of the contract that inputs broke: see `monitors.rules`
        ("bins", "u1", (PROBES_MAX,)),  # bin of each probe; see `monitors.probes`
    ],
    align=False,
)
_RECORD = struct.Struct(f"<QdffiIHBBQ{PROBES_MAX}s")
_STATIC = struct.Struct("<8sII16sI")  # magic, version, capacity, region id, length of the labels
_CRC = struct.Struct("<I")
_MAGIC = b"EKREGION"
_VERSION = 2  # 1 had no probes
_HALF = 1 << 31
_POSITIONS = 128  # five aligned 8-byte words: head, tail, overflow, overflow tail, total
_HEAD, _TAIL, _OVERFLOW, _OVERFLOW_TAIL, _TOTAL = range(5)
_LABELS = 256
FILE_BYTES = HEADER_BYTES + CAPACITY * RECORD.itemsize
assert _RECORD.size == RECORD.itemsize


ABSENT = 0x7F  # bin of a probe that could not be taken
BROKE = 0x80  # bit of a bin: this element broke the contract
AGREED = 0x40  # flag bit of a shadow record; its ``cls`` counts samples that found no room before
CORRECT = 0x80  # flag bit of a feedback record: the label equals the predicted class


class Sight(NamedTuple):
    """What the monitors saw of one inference, as a record holds it."""

    cls: int = -1
    confidence: float = math.nan
    broken: int = 0
    bins: bytes = b""


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """What every window drained from a region is labelled with."""

    model: str
    digest: str
    version: str
    slot: str
    release: str
    rollout: str
    wave: int
    classes: int = 0
    edges_digest: str = ""
    probes: tuple[tuple[str, int], ...] = ()  # name and number of bins, in the order of the record
    rules: tuple[tuple[str, str, str, str], ...] = ()  # see `monitors.rules.labels`
    session: str = ""  # of the one application that writes here; empty: a worker does
    shadow: bool = False  # holds records of `SHADOW_KINDS` and no inferences


class Region:
    """One region file, mapped. One process appends (calls are serialised), one drains."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Map an existing region.

        Raises:
            BadInputError: damaged header or positions that contradict each other.
        """
        self.path = path
        with translate_os_errors("map", path):
            self.descriptor = os.open(
                path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
            )
            self._attach(read_only=read_only)

    def _attach(self, *, read_only: bool) -> None:
        # Closed with us at the latest: a process has only so many descriptors.
        self._closer = weakref.finalize(self, os.close, self.descriptor)
        if os.fstat(self.descriptor).st_size != FILE_BYTES:
            raise BadInputError(f"{self.path}: not {FILE_BYTES} bytes long")
        access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
        self._map = mmap.mmap(self.descriptor, FILE_BYTES, access=access)
        try:
            self.region, self.labels = _read_static(self._map, self.path)
            _check_positions(self._map, self.path)
        except BadInputError:
            self._map.close()
            raise
        self._view = memoryview(self._map)
        self._words = self._view[_POSITIONS : _POSITIONS + 40].cast("Q")
        self.ring: npt.NDArray[np.void] = np.frombuffer(
            self._view, dtype=RECORD, offset=HEADER_BYTES
        )
        self._found = self.head  # what lies before was written before we looked
        self._counted = self._recount()

    @classmethod
    def of(cls, descriptor: int, *, read_only: bool = False) -> Region:
        """Map the region that another process has opened; takes over the descriptor.

        Raises:
            BadInputError: like `Region`.
        """
        found = cls.__new__(cls)
        found.path, found.descriptor = Path(f"descriptor {descriptor}"), descriptor
        found._attach(read_only=read_only)  # noqa: SLF001 - another way to make one of us
        return found

    @classmethod
    def create(cls, disk: Disk, path: Path, labels: Labels) -> Region:
        """Write an empty region file atomically and map it.

        Raises:
            ResourceError: the disk is full.
        """
        body = codec.encode(labels)
        static = _STATIC.pack(_MAGIC, _VERSION, CAPACITY, os.urandom(16), len(body))
        crc = _CRC.pack(zlib.crc32(body, zlib.crc32(static)))
        page = (static + crc).ljust(_LABELS, b"\0") + body
        if len(page) > HEADER_BYTES:
            raise BadInputError(f"{path}: labels of {len(body)} bytes do not fit")
        disk.replace(path, page.ljust(FILE_BYTES, b"\0"))
        return cls(path)

    @property
    def head(self) -> int:
        """Position after the newest committed record."""
        return self._words[_HEAD]

    @property
    def tail(self) -> int:
        """Position of the oldest record not yet drained."""
        return self._words[_TAIL]

    @property
    def overflow(self) -> tuple[int, int]:
        """Half-open range of inferences counted while the ring was full and not yet drained."""
        return self._words[_OVERFLOW_TAIL], self._words[_OVERFLOW]

    @property
    def counted(self) -> int:
        """Inferences counted here since the region began."""
        return self._recount() + self._words[_OVERFLOW]

    def append(  # noqa: PLR0917 - the hot path: each keyword costs
        self,
        kind: Kind,
        request: int,
        time: float,
        latency_us: float = 0.0,
        confidence: float = math.nan,
        cls: int = -1,
        flags: int = 0,
        broken: int = 0,
        bins: bytes = b"",
    ) -> int | None:
        """Commit one record; its position, or None when the ring is full (then only counted)."""
        words = self._words
        head = words[_HEAD]
        counts = kind in INFERENCE_KINDS
        if head - words[_TAIL] >= CAPACITY:
            if counts:
                words[_OVERFLOW] += 1
            return None
        counted = self._counted + 1 if counts else self._counted
        lap, place = divmod(head, CAPACITY)
        _RECORD.pack_into(
            self._map,
            HEADER_BYTES + place * _RECORD.size,
            request,
            time,
            latency_us,
            confidence,
            cls,
            counted & 0xFFFFFFFF,
            lap & 0xFFFF,
            flags,
            kind,
            broken,
            bins,
        )
        words[_TOTAL] = self._counted = counted
        words[_HEAD] = head + 1  # the commit: one aligned 8-byte store
        return head

    def records(self, first: int, last: int) -> npt.NDArray[np.void]:
        """Copy of the records at positions ``[first, last)``, oldest first."""
        found: npt.NDArray[np.void] = self._between(first, last).copy()
        return found

    def _between(self, first: int, last: int) -> npt.NDArray[np.void]:
        """The records themselves, where they do not go around the end of the ring."""
        start, end = first % CAPACITY, first % CAPACITY + max(0, last - first)
        if end <= CAPACITY:
            return self.ring[start:end]
        return np.concatenate((self.ring[start:], self.ring[: end - CAPACITY]))

    def intact(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Which records at ``[first, last)`` are really those of their positions."""
        found = self._between(first, last)
        laps = (np.arange(first, last, dtype=np.int64) // CAPACITY) & 0xFFFF
        result: npt.NDArray[np.bool_] = (found["lap"] == laps) & (found["kind"] > 0)
        return result

    def settled(self) -> int:
        """Position up to which records may be drained while another process appends.

        On processors that reorder stores, a new head may be seen before its record. What was there
        when the region was opened and is not intact was lost to a power cut, and never will be.
        """
        head = self.head
        first = max(self._found, self.tail, head - CAPACITY)
        missing = np.flatnonzero(~self.intact(first, head))
        return first + int(missing[0]) if missing.size else head

    def latencies_s(self, count: int) -> list[float]:
        """Of the newest ``count`` records, those of inferences that ended well; seconds."""
        found = self.records(max(0, self.head - count), self.head)
        answered = found["latency_us"][np.isin(found["kind"], (Kind.PREDICTION, Kind.SHADOW))]
        return [float(value) / 1e6 for value in answered]

    def inferences(self, first: int, last: int) -> int:
        """Inferences at ``[first, last)``; a record whose details were lost counts as one."""
        if self.labels.shadow:
            return 0
        kinds = self.records(first, last)["kind"]
        lost = ~self.intact(first, last)
        return int(np.count_nonzero(np.isin(kinds, INFERENCE_KINDS) | lost))

    def advance(self, tail: int, overflow_tail: int) -> None:
        """Forget everything before ``tail``; durable when this returns."""
        words = self._words
        words[_TAIL] = max(words[_TAIL], min(tail, words[_HEAD]))
        words[_OVERFLOW_TAIL] = max(words[_OVERFLOW_TAIL], min(overflow_tail, words[_OVERFLOW]))
        self._map.flush(0, HEADER_BYTES)

    def close(self) -> None:
        """Unmap."""
        self.ring = np.zeros(0, dtype=RECORD)
        self._words.release()
        self._view.release()
        self._map.close()
        self._closer()

    def _recount(self) -> int:
        head = self.head
        if self.labels.shadow:
            return 0
        first, newest = max(0, head - CAPACITY), head - 1
        if not self.intact(max(first, newest), head).any():  # as after a power cut
            good = np.flatnonzero(self.intact(first, head))
            if good.size == 0:
                return head if first == 0 else 0
            newest = first + int(good[-1])
        # Records hold the lower half of the count; the header's, which may be a little ahead or
        # (after a power cut) behind, says what is above.
        low, near = int(self.records(newest, newest + 1)["counted"][0]), self._words[_TOTAL]
        base = near + (low - near + _HALF) % (2 * _HALF) - _HALF
        return base + (head - newest - 1)


def _check_positions(mapped: mmap.mmap, path: Path) -> None:
    words = struct.unpack_from("<5Q", mapped, _POSITIONS)
    head, tail, overflow, overflow_tail, _ = words
    if not (tail <= head <= tail + CAPACITY) or overflow_tail > overflow:
        raise BadInputError(f"{path}: positions {words} contradict each other")


def _read_static(mapped: mmap.mmap, path: Path) -> tuple[str, Labels]:
    magic, version, capacity, region, length = _STATIC.unpack_from(mapped)
    (crc,) = _CRC.unpack_from(mapped, _STATIC.size)
    body = bytes(mapped[_LABELS : _LABELS + length]) if length <= HEADER_BYTES - _LABELS else b""
    known = (magic, version, capacity) == (_MAGIC, _VERSION, CAPACITY)
    if not known or zlib.crc32(body, zlib.crc32(mapped[: _STATIC.size])) != crc:
        raise BadInputError(f"{path}: damaged header")
    return region.hex(), codec.decode(Labels, body, what=str(path))
