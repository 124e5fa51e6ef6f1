"""Counter regions, journals and draining: counted once, exact through kills and full rings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.counting import Counting, peek_totals
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.journal import Journal, hash_id
from edgekit_runtime.kinds import Kind
from edgekit_runtime.region import CAPACITY, FILE_BYTES, HEADER_BYTES, RECORD, Labels, Region, Sight
from edgekit_runtime.spool import Spool

DISK, CLOCK = PosixDisk(), SystemClock()


def _labels(slot: str = "a", **changes) -> Labels:
    values = {"model": "m", "digest": "d", "version": "1", "release": "r", "rollout": "o"}
    return Labels(**{**values, "slot": slot, "wave": 0, "classes": 3, **changes})


def _append(region: Region, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        region.append(Kind.PREDICTION, request=number + 1, time=1.0, cls=number % 3)


def test_region_survives_reopening_and_knows_its_labels(tmp_path):
    region = Region.create(DISK, tmp_path / "1.rgn", _labels())
    _append(region, 5)
    region.append(Kind.REJECTED, request=0, time=1.0)
    region.close()
    again = Region(tmp_path / "1.rgn")
    assert (again.head, again.tail, again.counted) == (6, 0, 5)
    assert again.labels == _labels()
    again.close()


def test_full_ring_counts_exactly_and_keeps_the_first_records(tmp_path):
    region = Region.create(DISK, tmp_path / "1.rgn", _labels())
    _append(region, CAPACITY + 10)
    assert region.overflow == (0, 10)
    assert region.counted == CAPACITY + 10
    assert region.inferences(0, region.head) == CAPACITY
    region.close()


def test_ring_wraps_after_draining(tmp_path):
    region = Region.create(DISK, tmp_path / "1.rgn", _labels())
    for turn in range(3):
        _append(region, 3000, start=turn * 3000)
        assert region.inferences(region.tail, region.head) == 3000
        region.advance(region.head, 0)
    assert region.counted == 9000
    region.close()
    again = Region(tmp_path / "1.rgn")
    assert again.counted == 9000
    again.close()


def test_a_record_lost_to_a_power_cut_is_counted_without_details(tmp_path):
    region = Region.create(DISK, tmp_path / "1.rgn", _labels())
    _append(region, 4)
    region.close()
    path = tmp_path / "1.rgn"
    data = bytearray(path.read_bytes())
    kept = HEADER_BYTES + RECORD.itemsize
    data[kept:] = bytes(len(data) - kept)  # only the first record's page survived
    path.write_bytes(data)
    again = Region(path)
    assert again.inferences(0, 4) == again.counted == 4
    assert again.intact(0, 4).tolist() == [True, False, False, False]
    again.close()


@pytest.mark.parametrize("offset", [0, 8, 20, 36, 300])
def test_damaged_header_is_refused(tmp_path, offset):
    path = tmp_path / "1.rgn"
    Region.create(DISK, path, _labels()).close()
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BadInputError):
        Region(path)


def test_truncated_region_and_contradicting_positions_are_refused(tmp_path):
    path = tmp_path / "1.rgn"
    Region.create(DISK, path, _labels()).close()
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: FILE_BYTES // 2])
    with pytest.raises(BadInputError):
        Region(path)
    data[136] = 9  # tail beyond head
    path.write_bytes(data)
    with pytest.raises(BadInputError, match="contradict"):
        Region(path)


def test_journal_counts_a_request_id_once_also_across_regions_and_restarts(tmp_path):
    first = Region.create(DISK, tmp_path / "1.rgn", _labels("a"))
    second = Region.create(DISK, tmp_path / "2.rgn", _labels("b"))
    journal = Journal()
    journal.add(first)
    journal.add(second)
    assert journal.record(first, Kind.PREDICTION, hash_id("x"), time=1.0, sight=Sight(2))
    assert not journal.record(first, Kind.PREDICTION, hash_id("x"), time=1.0, sight=Sight(2))
    assert not journal.record(second, Kind.PREDICTION, hash_id("x"), time=1.0, sight=Sight(2))
    assert journal.record(second, Kind.PREDICTION, 0, time=1.0)
    assert journal.record(second, Kind.PREDICTION, 0, time=1.0)
    again = Journal()
    again.add(first)
    assert not again.record(first, Kind.PREDICTION, hash_id("x"), time=1.0)
    assert (first.counted, second.counted) == (1, 2)


def test_journal_opens_a_ring_that_another_process_writes_to_meanwhile(tmp_path, monkeypatch):
    """In a split the other arm goes on answering while this one learns which ids were counted."""
    region = Region.create(DISK, tmp_path / "1.rgn", _labels())
    _append(region, CAPACITY)
    region.advance(CAPACITY, 0)
    read, appended = Region.records, iter(range(CAPACITY, CAPACITY + 10))

    def records(self, first, last):
        found = read(self, first, last)
        _append(self, 1, start=next(appended))
        return found

    monkeypatch.setattr(Region, "records", records)
    journal = Journal()
    journal.add(region)
    assert [journal.knows(number) for number in (1, CAPACITY, CAPACITY + 1)] == [False, True, False]


def test_feedback_joins_the_prediction_once(tmp_path):
    region = Region.create(DISK, tmp_path / "1.rgn", _labels())
    journal = Journal()
    journal.add(region)
    journal.record(region, Kind.PREDICTION, hash_id("x"), time=1.0, sight=Sight(2))
    assert journal.feedback("unknown", 1, time=2.0) is None
    assert journal.feedback("x", 2, time=2.0) is True
    assert journal.feedback("x", 2, time=2.0) is True
    assert region.head == 2
    assert region.counted == 1


def test_feedback_is_refused_when_the_ring_is_full(tmp_path):
    region = Region.create(DISK, tmp_path / "1.rgn", _labels())
    journal = Journal()
    journal.add(region)
    journal.record(region, Kind.PREDICTION, hash_id("x"), time=1.0, sight=Sight(2))
    _append(region, CAPACITY - 1, start=10)
    with pytest.raises(ResourceError):
        journal.feedback("x", 2, time=2.0)


def _open(tmp_path):
    spool = Spool.open(DISK, tmp_path / "spool", CLOCK)
    return spool, Counting(DISK, tmp_path / "regions", CLOCK, spool)


def test_drain_is_exactly_once_when_the_tail_was_not_moved(tmp_path, monkeypatch):
    spool, counting = _open(tmp_path)
    region = counting.begin(_labels())
    _append(region, 7)
    # The power goes after the spool has the window and before the tail moves.
    monkeypatch.setattr(region, "advance", lambda *_: None)
    counting.drain()
    spool, counting = _open(tmp_path)
    assert counting.drain() == 0
    assert spool.live_inferences == 7
    assert counting.produced() == 7


def test_drain_reports_overflow_as_a_window_of_its_own(tmp_path):
    spool, counting = _open(tmp_path)
    _append(counting.begin(_labels()), CAPACITY + 3)
    assert counting.drain() == 2
    assert spool.live_inferences == CAPACITY + 3
    spool, counting = _open(tmp_path)
    assert counting.drain() == 0
    assert counting.produced() == spool.live_inferences


def test_damaged_region_is_moved_aside_and_reported(tmp_path):
    _, counting = _open(tmp_path)
    path = counting.begin(_labels()).path
    path.write_bytes(b"\0" * FILE_BYTES)
    _, counting = _open(tmp_path)
    assert counting.notes
    assert path.with_name(path.name + ".broken").exists()
    assert counting.begin(_labels()).counted == 0


def test_retired_regions_stay_in_the_sum(tmp_path):
    spool, counting = _open(tmp_path)
    for wave in range(9):
        _append(counting.begin(_labels(wave=wave)), 2)
        counting.drain()
        counting.retire()
    assert counting.produced() == 18
    assert len(list((tmp_path / "regions").iterdir())) == 5
    assert peek_totals(DISK, tmp_path / "regions", spool) == (18, 0)


def test_sigkilled_writer_leaves_every_committed_record(tmp_path):
    path = tmp_path / "1.rgn"
    Region.create(DISK, path, _labels()).close()
    script = (
        "import sys\nfrom pathlib import Path\nfrom edgekit_runtime.kinds import Kind\n"
        "from edgekit_runtime.region import Region\n"
        "region = Region(Path(sys.argv[1]))\n"
        "while True:\n"
        "    region.append(Kind.PREDICTION, request=1, time=1.0)\n"
        "    print(region.head, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        seen = [writer.stdout.readline() for _ in range(500)]
        os.kill(writer.pid, signal.SIGKILL)
        seen += writer.stdout.readlines()
    printed = int(seen[-1])
    region = Region(path)
    # "Answered" is what was printed: it was counted before, and at most one more is in doubt.
    assert printed <= min(region.head, CAPACITY) + region.overflow[1] <= printed + 1
    assert region.intact(max(0, region.head - CAPACITY), region.head).all()
    region.close()
