"""One segment: whole frames of one (epoch, boot, lane), indexed in compact arrays. Pure.

`scan` reads whatever a power cut left: a torn or zero-filled tail is cut off, damage in the middle
is stepped over by looking for the next intact frame.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import msgspec

from edgekit.contracts import frames
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import Record, Tombstone, Window


def inferences_of(records: Sequence[Record]) -> int:
    """Inferences that ``records`` count."""
    return sum(record.n for record in records if isinstance(record, Window))


class Segment(msgspec.Struct, eq=False):
    """Index of one segment file. ``seqs`` ascends."""

    lane: int
    name: str
    epoch: int = -1
    boot: int = -1
    length: int = 0  # bytes of the file
    seqs: array[int] = msgspec.field(default_factory=lambda: array("Q"))
    offsets: array[int] = msgspec.field(default_factory=lambda: array("L"))
    sizes: array[int] = msgspec.field(default_factory=lambda: array("L"))
    records: array[int] = msgspec.field(default_factory=lambda: array("H"))
    inferences: array[int] = msgspec.field(default_factory=lambda: array("Q"))

    def add(self, header: frames.FrameHeader, offset: int, inferences: int) -> None:
        """Index a frame that lies at ``offset``."""
        self.epoch, self.boot = header.epoch, header.boot
        self.seqs.append(header.seq)
        self.offsets.append(offset)
        self.sizes.append(header.frame_bytes)
        self.records.append(header.records)
        self.inferences.append(inferences)
        self.length = max(self.length, offset + header.frame_bytes)

    def between(self, first: int, last: int) -> range:
        """Indices of frames whose number lies in ``first`` .. ``last``."""
        return range(bisect_left(self.seqs, first), bisect_left(self.seqs, last + 1))


class Scan(msgspec.Struct):
    """What was found in a segment file."""

    segment: Segment
    keep_bytes: int  # everything after this is a torn tail
    damaged: int = 0  # damaged places, the tail included
    # region -> end of its newest window
    drained: dict[str, int] = msgspec.field(default_factory=dict)
    tombstones: list[Tombstone] = msgspec.field(default_factory=list)


def scan(lane: int, name: str, data: bytes) -> Scan:
    """Index every intact frame in ``data``."""
    found = Scan(Segment(lane, name), keep_bytes=0)
    for offset, header in _intact(data, found):
        raw = data[offset : offset + header.frame_bytes]
        segment = found.segment
        fits = segment.epoch in (-1, header.epoch) and segment.boot in (-1, header.boot)
        ascending = not segment.seqs or header.seq > segment.seqs[-1]
        try:
            _, records, _ = frames.decode(raw)
        except BadInputError:
            found.damaged += 1  # intact bytes of nonsense: no manager could take it either
            continue
        if header.lane != lane or not fits or not ascending:
            found.damaged += 1
            continue
        segment.add(header, offset, inferences_of(records))
        for record in records:
            if isinstance(record, Window):
                found.drained[record.region] = max(record.last, found.drained.get(record.region, 0))
            elif isinstance(record, Tombstone):
                found.tombstones.append(record)
    found.segment.length = found.keep_bytes
    return found


def _intact(data: bytes, found: Scan) -> Iterator[tuple[int, frames.FrameHeader]]:
    offset = 0
    while offset < len(data):
        header = frames.read_header(data, offset)
        if header is not None:
            yield offset, header
            offset += header.frame_bytes
            found.keep_bytes = offset
            continue
        found.damaged += 1
        offset = _resync(data, offset + 1)


def _resync(data: bytes, offset: int) -> int:
    """Offset of the next intact frame, the end of ``data`` when there is none."""
    while (offset := data.find(frames.MAGIC, offset)) >= 0:
        if frames.read_header(data, offset) is not None:
            return offset
        offset += 1
    return len(data)
