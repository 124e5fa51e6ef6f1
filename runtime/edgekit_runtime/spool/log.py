"""The spool: bounded, exact about what it dropped, and it always starts.

Frames are stored exactly as they are sent. Numbers of a (boot, lane) count from 0 without gaps;
boot is persisted before the first record, so identities are never reused. An application ack
removes frames from what is to be sent; a segment is deleted only when the cursor that remembers its
acks is on disk. ``produced == acked + evicted + live + undrained`` holds at every moment, and
through SIGKILL.

Not thread-safe: the agent's control thread owns it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit.contracts import frames
from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit.contracts.frames import Lane
from edgekit.contracts.health import SpoolReport
from edgekit.contracts.limits import FRAME_BYTES_MAX, FRAME_RECORDS_MAX
from edgekit.contracts.messages import Ack, Record, Tombstone
from edgekit_runtime.ports import Clock, Disk
from edgekit_runtime.spool.cursor import Cursor, Eviction
from edgekit_runtime.spool.index import Frame, Index, Position
from edgekit_runtime.spool.segment import Segment, inferences_of, scan
from edgekit_runtime.twocopy import TwoCopy

SEGMENT_BYTES = 256 * 1024  # smaller wastes inodes, larger drops more in one eviction
EPOCH_MAX = 2**53  # readers in other languages keep it in a double
_SUFFIX = ".seg"


class SpoolLimits(msgspec.Struct, frozen=True):
    """Bounds of the spool."""

    bytes_max: int = 64 * 1024 * 1024
    segment_bytes: int = SEGMENT_BYTES


class Spool:
    """Use `open` to own it, `peek` to look at it."""

    def __init__(self, disk: Disk, root: Path, clock: Clock, limits: SpoolLimits) -> None:
        self._disk = disk
        self._root = root
        self._clock = clock
        self._limits = limits
        self._file = TwoCopy(disk, root, "cursor", Cursor)
        self._index = Index({})
        self._next_seq = {lane.value: 0 for lane in Lane}
        self._open: dict[int, Segment | None] = {lane.value: None for lane in Lane}
        self._unsynced: set[int] = set()
        self._dirty = False
        self._tombstones: list[Tombstone] = []
        self.cursor = Cursor(epoch=0, boot=0)
        self.drained: dict[str, int] = {}  # region -> end of its newest stored window
        self.notes: list[str] = []  # what recovery found; the agent reports it and clears it

    @classmethod
    def open(cls, disk: Disk, root: Path, clock: Clock, limits: SpoolLimits | None = None) -> Spool:
        """Recover what is there and begin a new boot; damage never prevents it.

        Raises:
            ResourceError: the new boot number cannot be written (disk full or read-only).
        """
        self = cls(disk, root, clock, limits or SpoolLimits())
        for lane in Lane:
            disk.make_dir(self._folder(lane))
        found = self._file.load()
        if found.broken:
            self.notes.append("both copies of the spool cursor were unreadable: new epoch")
        old = found.value or Cursor(
            epoch=int.from_bytes(os.urandom(8), "little") % EPOCH_MAX, boot=0
        )
        self.cursor = msgspec.structs.replace(old, boot=old.boot + 1)
        self._file.save(self.cursor)
        self._index = Index(old.acked)
        damaged = sum(self._recover(lane.value, change=True) for lane in Lane)
        if damaged:
            self.notes.append(f"{damaged} damaged places in the spool stepped over")
        self.update_cursor(damaged=self.cursor.damaged + damaged)
        self._finish_eviction()
        self._drop_acked_segments()
        return self

    @classmethod
    def peek(cls, disk: Disk, root: Path, clock: Clock) -> Spool:
        """Read-only view for ``status``: nothing on disk changes, nothing may be appended."""
        self = cls(disk, root, clock, SpoolLimits())
        self.cursor = self._file.peek().value or self.cursor
        self._index = Index(self.cursor.acked)
        for lane in Lane:
            self._recover(lane.value, change=False)
        return self

    def append(self, lane: Lane, records: Sequence[Record], *, sync: bool = False) -> Position:
        """Store one frame; lane 0 and ``sync`` are durable on return, others at `flush`.

        Returns:
            Epoch, boot and number of the frame.

        Raises:
            ResourceError: the spool or disk is full and nothing less important can go.
        """
        raw, header = self._frame(lane, records)
        while self._index.bytes_used + len(raw) > self._limits.bytes_max:
            if not self._evict_one(lane):
                raise ResourceError(
                    f"spool: {self._limits.bytes_max} bytes are full of more important records",
                    hint="connect the device or give [spool] bytes_max more room",
                )
            raw, header = self._frame(lane, records)  # the tombstone may have got its number
        while True:
            try:
                self._write(raw, header, records, sync=sync or lane is Lane.AUDIT)
                break
            except ResourceError:
                # The disk is full before our own bound: make room, or let the caller keep it.
                if not self._evict_one(lane):
                    raise
                raw, header = self._frame(lane, records)
        return header.epoch, header.boot, header.seq

    def flush(self) -> None:
        """Make everything appended so far durable."""
        for lane in sorted(self._unsynced):
            segment = self._open[lane]
            if segment is not None and segment.length:
                self._disk.sync(self._path(segment))
                self._disk.sync_dir(self._folder(lane))
        self._unsynced.clear()

    def acknowledge(self, ack: Ack) -> int:
        """Forget frames that the manager has committed; returns how many were new."""
        new_frames, new_inferences = self._index.acknowledge(ack)
        if new_frames:
            self.cursor = msgspec.structs.replace(
                self.cursor,
                acked_frames=self.cursor.acked_frames + new_frames,
                acked_inferences=self.cursor.acked_inferences + new_inferences,
            )
            self._dirty = True
        return new_frames

    def maintain(self) -> None:
        """Persist acknowledgements and delete fully acknowledged segments. Free when idle."""
        if self._dirty:
            self.update_cursor()
            self._drop_acked_segments()

    def update_cursor(self, **changes: object) -> None:
        """Change fields of the cursor and persist it with the acknowledgements."""
        acked = self._index.acked(boot=(self.cursor.epoch, self.cursor.boot))
        self.cursor = msgspec.structs.replace(self.cursor, acked=acked, **changes)
        self._file.save(self.cursor)
        self._dirty = False

    def pending(self, after: Mapping[int, Position] | None = None) -> Iterator[Frame]:
        """Unacknowledged frames, lane 0 first; ``after`` says where each lane begins."""
        return self._index.pending(after or {})

    def read(self, frame: Frame) -> bytes | None:
        """Bytes of a frame; None when it was acknowledged or evicted meanwhile, or is damaged."""
        segment, index = frame.segment, frame.index
        if segment not in self._index.segments[segment.lane]:
            return None
        raw = self._disk.read_at(self._path(segment), segment.offsets[index], segment.sizes[index])
        header = frames.read_header(raw)
        # Damaged since recovery: the next start counts it.
        return raw if header is not None and header.seq == frame.seq else None

    def stored(self, lane: Lane) -> Iterator[Record]:
        """Every record of ``lane`` still on disk, acknowledged or not, oldest first."""
        for segment in self._index.segments[lane.value]:
            for offset, size in zip(segment.offsets, segment.sizes, strict=True):
                try:
                    raw = self._disk.read_at(self._path(segment), offset, size)
                except BadInputError:
                    break  # a running agent has removed it since it was indexed
                if frames.read_header(raw) is not None:
                    yield from frames.decode(raw)[1]

    def is_acked(self, frame: Frame) -> bool:
        """Whether the manager has committed ``frame``."""
        return self._index.is_acked(frame)

    @property
    def live_inferences(self) -> int:
        """Inferences in stored, unacknowledged frames."""
        return self._index.live_inferences

    def report(self) -> SpoolReport:
        """Figures for the manager and for people."""
        return SpoolReport(
            bytes_used=self._index.bytes_used,
            frames_unacked=self._index.live_frames,
            frames_evicted=self.cursor.evicted_frames,
            inferences_evicted=self.cursor.evicted_inferences,
            damaged=self.cursor.damaged,
        )

    def _folder(self, lane: int) -> Path:
        return self._root / f"p{int(lane)}"

    def _path(self, segment: Segment) -> Path:
        return self._folder(segment.lane) / segment.name

    def _frame(self, lane: Lane, records: Sequence[Record]) -> tuple[bytes, frames.FrameHeader]:
        raw = frames.encode(
            epoch=self.cursor.epoch,
            boot=self.cursor.boot,
            lane=lane,
            seq=self._next_seq[lane],
            records=records,
        )
        header = frames.read_header(raw)
        assert header is not None
        return raw, header

    def _write(
        self, raw: bytes, header: frames.FrameHeader, records: Sequence[Record], *, sync: bool
    ) -> None:
        lane = header.lane
        segment = self._segment_for(lane, len(raw))
        path = self._path(segment)
        try:
            self._disk.append(path, raw, sync=sync)
        except ResourceError:
            self._cut_back(segment)
            raise
        self._index.append(segment, header, inferences_of(records))
        self._next_seq[lane] = header.seq + 1
        if not sync:
            self._unsynced.add(lane)

    def _cut_back(self, segment: Segment) -> None:
        """Undo a half-written append; if even that fails, write no further into this file."""
        path = self._path(segment)
        try:
            if self._disk.size(path) is not None:
                self._disk.truncate(path, segment.length)
        except (ResourceError, BadInputError):
            self._open[segment.lane] = None

    def _segment_for(self, lane: int, size: int) -> Segment:
        segment = self._open[lane]
        if segment is not None and segment.length + size <= self._limits.segment_bytes:
            return segment
        if lane in self._unsynced:
            self.flush()
        held = self._index.segments[lane]
        number = int(held[-1].name.removesuffix(_SUFFIX)) + 1 if held else 1
        # Never reuse a name: a file whose removal a power cut undid would be appended to.
        while self._disk.size(self._folder(lane) / f"{number:012d}{_SUFFIX}") is not None:
            number += 1
        name = f"{number:012d}{_SUFFIX}"
        segment = Segment(lane, name, epoch=self.cursor.epoch, boot=self.cursor.boot)
        self._index.insert(segment)
        self._open[lane] = segment
        return segment

    def _evict_one(self, lane_wanting: int) -> bool:
        """Drop the oldest segment of the lowest lane not more important than ``lane_wanting``."""
        for lane in sorted(self._index.segments, reverse=True):
            held = [s for s in self._index.segments[lane] if s.length]
            # Lane 0 keeps its newest segment: the tombstones themselves go there.
            if lane >= lane_wanting and len(held) > (1 if lane == 0 else 0):
                self._evict(held[0])
                return True
        return False

    def _evict(self, segment: Segment) -> None:
        stones = self._index.tombstones(segment, reason="spool full", at=self._clock.wall())
        lost = sum(stone.inferences for stone in stones)
        self._detach(segment)
        self.update_cursor(
            evicted_frames=self.cursor.evicted_frames
            + sum(stone.last - stone.first + 1 for stone in stones),
            evicted_records=self.cursor.evicted_records + sum(stone.records for stone in stones),
            evicted_inferences=self.cursor.evicted_inferences + lost,
            pending=Eviction(lane=segment.lane, segment=segment.name, tombstones=stones),
        )
        self._finish_eviction()

    def _finish_eviction(self) -> None:
        """Second half of an eviction, also after a power cut in the middle of it."""
        pending = self.cursor.pending
        if pending is None:
            return
        for segment in list(self._index.segments[pending.lane]):
            if segment.name == pending.segment:
                self._detach(segment)
        self._disk.unlink(self._folder(pending.lane) / pending.segment)
        self._disk.sync_dir(self._folder(pending.lane))
        missing = [stone for stone in pending.tombstones if stone not in self._tombstones]
        for start in range(0, len(missing), FRAME_RECORDS_MAX):
            part = missing[start : start + FRAME_RECORDS_MAX]
            # Straight to the file: a tombstone must not cause the next eviction.
            raw, header = self._frame(Lane.AUDIT, part)
            self._write(raw, header, part, sync=True)
        self.update_cursor(pending=None)

    def _detach(self, segment: Segment) -> None:
        self._index.remove(segment)
        if self._open[segment.lane] is segment:
            self._open[segment.lane] = None

    def _drop_acked_segments(self) -> None:
        for lane, segments in self._index.segments.items():
            for segment in list(segments):
                live = next(self._index.unacked(segment), None)
                if live is None and self._open[lane] is not segment:
                    self._disk.unlink(self._path(segment))
                    self._detach(segment)

    def _recover(self, lane: int, *, change: bool) -> int:
        """Index the segments of ``lane``; returns the number of damaged places."""
        damaged = 0
        for name in self._disk.names(self._folder(lane)):
            if not (name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isdigit()):
                continue
            path = self._folder(lane) / name
            try:
                data = self._disk.read(path, bytes_max=2 * SEGMENT_BYTES + FRAME_BYTES_MAX)
            except (BadInputError, ResourceError) as exc:
                damaged += 1
                self.notes.append(exc.message)
                continue
            found = scan(lane, name, data or b"")
            damaged += found.damaged
            if change and found.keep_bytes < (self._disk.size(path) or 0):
                self._disk.truncate(path, found.keep_bytes)
            self._index.insert(found.segment)
            for region, last in found.drained.items():
                self.drained[region] = max(last, self.drained.get(region, 0))
            self._tombstones += found.tombstones
        return damaged
