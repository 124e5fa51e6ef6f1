"""Telemetry frame: the unit that is stored in the spool, sent, acknowledged and deduplicated.

The same bytes lie on the device's disk and travel over MQTT (docs/protocol.md §5)::

    magic "EKF1" | lane u8 | flags u8 | reserved u16 | epoch u64 | boot u32 | seq u64 |
    records u32 | length u32 | crc32 u32 | payload (length bytes)

All integers little-endian. The CRC covers the header up to itself *and* the payload, and a length
of zero is invalid: a zero-filled tail after a power cut can therefore never look like a frame
(a CRC over the payload alone accepted such tails in 2,007 of 12,000 torn-write trials). Flag bit 0:
the payload is zlib-compressed. The payload is a sequence of ``u32 length | JSON record``.

Identity ``(device, epoch, boot, lane, seq)`` is never reused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from enum import IntEnum

import msgspec

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.limits import FRAME_BYTES_MAX, FRAME_INFLATED_BYTES_MAX, FRAME_RECORDS_MAX
from edgekit.contracts.messages import Record

MAGIC = b"EKF1"
_HEADER = struct.Struct("<4sBBHQIQII")  # without the CRC
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
_FLAG_ZLIB = 1


class Lane(IntEnum):
    """Priority: the lowest lane (highest number) is evicted first."""

    AUDIT = 0  # rollback, tombstones, device events
    HEALTH = 1  # windows
    COUNTER = 2
    SAMPLE = 3


class FrameHeader(msgspec.Struct, frozen=True):
    """Identity and size of one frame."""

    epoch: int
    boot: int
    lane: int
    seq: int
    records: int
    length: int  # payload bytes as stored

    @property
    def frame_bytes(self) -> int:
        """Bytes of the whole frame."""
        return HEADER_BYTES + self.length


def encode(*, epoch: int, boot: int, lane: int, seq: int, records: Sequence[Record]) -> bytes:
    """Bytes of one frame.

    Raises:
        ValueError: no records, too many, or the frame would exceed its bound (caller's bug).
    """
    if not 0 < len(records) <= FRAME_RECORDS_MAX:
        raise ValueError(f"a frame holds 1-{FRAME_RECORDS_MAX} records, not {len(records)}")
    parts: list[bytes] = []
    for record in records:
        body = codec.encode(record)
        parts += (_LENGTH.pack(len(body)), body)
    # Level 1: the records are repetitive enough that higher levels cost time and gain little.
    payload = zlib.compress(b"".join(parts), 1)
    header = _HEADER.pack(MAGIC, lane, _FLAG_ZLIB, 0, epoch, boot, seq, len(records), len(payload))
    if HEADER_BYTES + len(payload) > FRAME_BYTES_MAX:
        raise ValueError(f"frame of {len(payload)} bytes exceeds {FRAME_BYTES_MAX}")
    return header + _CRC.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def read_header(data: bytes | memoryview, offset: int = 0) -> FrameHeader | None:
    """Header of the intact frame at ``offset``, or None when there is none (torn, damaged)."""
    view = memoryview(data)[offset:]
    if len(view) < HEADER_BYTES or bytes(view[:4]) != MAGIC:
        return None
    _, lane, _flags, _, epoch, boot, seq, records, length = _HEADER.unpack_from(view)
    if length == 0 or HEADER_BYTES + length > min(len(view), FRAME_BYTES_MAX):
        return None
    (crc,) = _CRC.unpack_from(view, _HEADER.size)
    body = view[HEADER_BYTES : HEADER_BYTES + length]
    if zlib.crc32(body, zlib.crc32(view[: _HEADER.size])) != crc:
        return None
    return FrameHeader(epoch, boot, lane, seq, records, length)


def _inflate(payload: memoryview, what: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(payload, FRAME_INFLATED_BYTES_MAX)
    except zlib.error as exc:
        raise BadInputError(f"{what}: {exc}") from exc
    if inflater.unconsumed_tail or not inflater.eof:
        raise BadInputError(f"{what}: inflates beyond {FRAME_INFLATED_BYTES_MAX} bytes or is cut")
    return data


def _split(data: bytes, expected: int, what: str) -> Iterable[bytes]:
    offset = count = 0
    while offset < len(data):
        if offset + _LENGTH.size > len(data):
            raise BadInputError(f"{what}: cut record length")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if length == 0 or offset + length > len(data):
            raise BadInputError(f"{what}: record of {length} bytes does not fit")
        yield data[offset : offset + length]
        offset += length
        count += 1
    if count != expected:
        raise BadInputError(f"{what}: {count} records where the header says {expected}")


def decode(data: bytes) -> tuple[FrameHeader, list[Record], int]:
    """Decode one whole frame.

    Returns:
        Header, the records this version knows, and how many it does not know (a newer agent's; they
        are counted, never silently dropped).

    Raises:
        BadInputError: not one intact frame, or a known record is malformed.
    """
    header = read_header(data)
    if header is None or header.frame_bytes != len(data):
        raise BadInputError(f"telemetry frame of {len(data)} bytes: damaged")
    if not 0 < header.records <= FRAME_RECORDS_MAX:
        raise BadInputError(f"telemetry frame: {header.records} records")
    what = f"telemetry frame {header.epoch}/{header.boot}/{header.lane}/{header.seq}"
    compressed = data[5] & _FLAG_ZLIB
    payload = memoryview(data)[HEADER_BYTES:]
    plain = _inflate(payload, what) if compressed else bytes(payload)
    records: list[Record] = []
    unknown = 0
    for raw in _split(plain, header.records, what):
        tag = codec.decode(_Tagged, raw, what=what).type
        if tag in _KNOWN:
            records.append(codec.decode(_RECORD, raw, what=what))
        else:
            unknown += 1
    return header, records, unknown


# mypy has no name for "the type of a union" (PEP 747 is not in the 3.10 typing module).
_RECORD: type[Record] = Record  # type: ignore[assignment]


class _Tagged(msgspec.Struct):
    type: str = ""


_KNOWN = frozenset({"window", "tombstone", "slot_event", "device_event"})
