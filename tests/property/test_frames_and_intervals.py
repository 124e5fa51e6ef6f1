"""Frames never accept damage; interval sets behave like sets."""

import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts import frames, messages
from edgekit.contracts.errors import BadInputError
from edgekit.stats.intervals import IntervalSet

RECORDS = [
    messages.DeviceEvent(kind="boot", detail="first", at=1.5),
    messages.Tombstone(
        boot=1, lane=1, first=0, last=9, records=3, inferences=77, reason="full", at=2.0
    ),
    messages.Window(
        model="m", digest="d", slot="s", release="r", rollout="o", wave=0, start=0.0, end=1.0,
        n=5, latency=(1, 4), probes={"class": (2, 3)}, region="ab", first=0, last=5,
    ),
]  # fmt: skip
FRAME = frames.encode(epoch=2**52, boot=3, lane=1, seq=9, records=RECORDS)


def test_frame_round_trip():
    header, records, unknown = frames.decode(FRAME)
    assert (header.epoch, header.boot, header.lane, header.seq) == (2**52, 3, 1, 9)
    assert records == RECORDS
    assert unknown == 0


def test_records_of_a_newer_agent_are_counted_not_dropped_silently(monkeypatch):
    monkeypatch.setattr(frames, "_KNOWN", frozenset({"window", "tombstone"}))
    _, records, unknown = frames.decode(FRAME)
    assert (len(records), unknown) == (2, 1)


@given(st.integers(0, len(FRAME) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(position, bit):
    damaged = bytearray(FRAME)
    damaged[position] ^= 1 << bit
    with pytest.raises(BadInputError):
        frames.decode(bytes(damaged))


@given(st.integers(0, len(FRAME) - 1), st.binary(max_size=64))
def test_torn_and_zero_filled_tails_are_noticed(cut, tail):
    assert frames.read_header(FRAME[:cut]) is None
    assert frames.read_header(FRAME[:cut] + bytes(len(FRAME) - cut)) is None
    assert frames.read_header(bytes(len(FRAME))) is None
    assert frames.read_header(FRAME + tail) is not None


@given(st.binary(max_size=300))
def test_garbage_is_refused_with_an_error_of_ours(data):
    with pytest.raises(BadInputError):
        frames.decode(data)


def test_a_zlib_bomb_is_refused():
    bomb = zlib.compress(bytes(frames.FRAME_INFLATED_BYTES_MAX + 1))
    header = frames._HEADER.pack(frames.MAGIC, 0, 1, 0, 1, 1, 1, 1, len(bomb))
    raw = header + frames._CRC.pack(zlib.crc32(bomb, zlib.crc32(header))) + bomb
    with pytest.raises(BadInputError, match="inflates beyond"):
        frames.decode(raw)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=40))
def test_interval_set_equals_a_set(ranges):
    mine, model = IntervalSet(), set()
    for first, extra in ranges:
        mine.add(first, first + extra)
        model.update(range(first, first + extra + 1))
    assert len(mine) == len(model)
    assert all((number in mine) == (number in model) for number in range(-1, 75))
    pairs = mine.pairs
    assert all(a[1] + 1 < b[0] for a, b in pairwise(pairs))
    gap = mine.first_gap(0)
    assert gap not in model
    assert all(number in model for number in range(gap))
