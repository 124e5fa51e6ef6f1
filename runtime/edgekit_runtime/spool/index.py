"""What lies in the spool, in memory: segments, acknowledgements, live totals. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from edgekit.contracts.frames import FrameHeader, Lane
from edgekit.contracts.messages import Ack, Tombstone
from edgekit.stats.intervals import IntervalSet
from edgekit_runtime.spool.segment import Segment

Position = tuple[int, int, int]  # epoch, boot, number


def key(epoch: int, boot: int, lane: int) -> str:
    """Key of an acknowledgement set."""
    return f"{epoch}/{boot}/{lane}"


class Frame(msgspec.Struct, frozen=True):
    """A stored frame that waits for its acknowledgement."""

    epoch: int
    boot: int
    lane: int
    seq: int
    segment: Segment
    index: int

    @property
    def identity(self) -> tuple[int, int, int, int]:
        """Epoch, boot, lane, number."""
        return self.epoch, self.boot, self.lane, self.seq


class Index:
    """Mutable; the totals always equal what the segments and acks say."""

    def __init__(self, acked: Mapping[str, tuple[tuple[int, int], ...]]) -> None:
        self.segments: dict[int, list[Segment]] = {lane.value: [] for lane in Lane}
        self._acked = {name: IntervalSet(pairs) for name, pairs in acked.items()}
        self.live_frames = 0
        self.live_inferences = 0

    @property
    def bytes_used(self) -> int:
        """Bytes of all segments."""
        return sum(s.length for segments in self.segments.values() for s in segments)

    def insert(self, segment: Segment) -> None:
        """Take in a segment found on disk."""
        self.segments[segment.lane].append(segment)
        for frame in self.unacked(segment):
            self.live_frames += 1
            self.live_inferences += segment.inferences[frame.index]

    def append(self, segment: Segment, header: FrameHeader, inferences: int) -> None:
        """Take in a frame just written at the end of ``segment``."""
        segment.add(header, segment.length, inferences)
        self.live_frames += 1
        self.live_inferences += inferences

    def remove(self, segment: Segment) -> None:
        """Forget a segment and whatever in it was live."""
        for frame in self.unacked(segment):
            self.live_frames -= 1
            self.live_inferences -= segment.inferences[frame.index]
        self.segments[segment.lane].remove(segment)

    def acknowledge(self, ack: Ack) -> tuple[int, int]:
        """Mark frames as committed; returns how many frames and inferences were new."""
        known = self._acked.setdefault(key(ack.epoch, ack.boot, ack.lane), IntervalSet())
        new_frames = new_inferences = 0
        for segment in self.segments.get(ack.lane, []):
            if (segment.epoch, segment.boot) != (ack.epoch, ack.boot):
                continue
            for first, last in ack.intervals:
                # Only numbers that exist are added: a wild interval cannot bless future frames.
                for index in segment.between(first, last):
                    if segment.seqs[index] not in known:
                        known.add(segment.seqs[index])
                        new_frames += 1
                        new_inferences += segment.inferences[index]
        self.live_frames -= new_frames
        self.live_inferences -= new_inferences
        return new_frames, new_inferences

    def is_acked(self, frame: Frame) -> bool:
        """Whether the manager has committed ``frame``."""
        known = self._acked.get(key(frame.epoch, frame.boot, frame.lane))
        return known is not None and frame.seq in known

    def unacked(self, segment: Segment, after: Position | None = None) -> Iterator[Frame]:
        """Live frames of ``segment``, those after a position of its own boot only."""
        known = self._acked.get(key(segment.epoch, segment.boot, segment.lane))
        same = after is not None and (segment.epoch, segment.boot) == after[:2]
        start = segment.between(after[2] + 1, 2**62).start if same and after is not None else 0
        for index in range(start, len(segment.seqs)):
            seq = segment.seqs[index]
            if known is None or seq not in known:
                yield Frame(segment.epoch, segment.boot, segment.lane, seq, segment, index)

    def pending(self, after: Mapping[int, Position]) -> Iterator[Frame]:
        """Live frames, lane 0 first, each lane in the order of writing after its position."""
        for lane, segments in self.segments.items():
            position = after.get(lane)
            begin = 0
            for number, segment in enumerate(segments):
                if position is not None and (segment.epoch, segment.boot) == position[:2]:
                    begin = number
                    if segment.seqs and segment.seqs[-1] > position[2]:
                        break
            for segment in segments[begin:]:
                yield from self.unacked(segment, position)

    def acked(self, *, boot: tuple[int, int]) -> dict[str, tuple[tuple[int, int], ...]]:
        """Acknowledgements worth remembering: of ``boot`` (epoch, boot) and of stored segments."""
        keep = {
            key(segment.epoch, segment.boot, segment.lane)
            for segments in self.segments.values()
            for segment in segments
        } | {key(*boot, lane.value) for lane in Lane}
        self._acked = {name: known for name, known in self._acked.items() if name in keep}
        return {name: known.pairs for name, known in self._acked.items()}

    def tombstones(self, segment: Segment, *, reason: str, at: float) -> tuple[Tombstone, ...]:
        """One tombstone per unbroken run of live frames in ``segment``."""
        runs: list[list[Frame]] = []
        for frame in self.unacked(segment):
            if runs and runs[-1][-1].seq == frame.seq - 1:
                runs[-1].append(frame)
            else:
                runs.append([frame])
        return tuple(
            Tombstone(
                boot=segment.boot,
                lane=segment.lane,
                first=run[0].seq,
                last=run[-1].seq,
                records=sum(segment.records[frame.index] for frame in run),
                inferences=sum(segment.inferences[frame.index] for frame in run),
                reason=reason,
                at=at,
            )
            for run in runs
        )
