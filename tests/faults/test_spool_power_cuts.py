"""Power is cut at every write, fsync, rename and unlink of a spool's life; nothing counts twice."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from agentkit.disks import FaultyDisk, PowerCut
from agentkit.records import ack, window

from edgekit.contracts import frames
from edgekit.contracts.errors import ResourceError
from edgekit.contracts.frames import Lane
from edgekit.contracts.messages import DeviceEvent, Tombstone, Window
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.spool import Spool, SpoolLimits

LIMITS = SpoolLimits(bytes_max=5000, segment_bytes=700)


class StillClock(SystemClock):
    """One time always: a tombstone's digits change its size, and so where a segment ends.

    Operation n of one run has to be operation n of the next, or a cut falls behind the last one.
    """

    def wall(self) -> float:
        return 1_800_000_000.25


CLOCK = StillClock()


class Ledger:
    """What an outside observer knows: what append returned for, and what a manager committed."""

    def __init__(self) -> None:
        self.stored: dict[tuple[int, int, int, int], int] = {}
        self.attempted: dict[tuple[int, int, int, int], int] = {}
        self.committed: dict[tuple[int, int, int, int], list] = {}

    def commit(self, spool: Spool, limit: int) -> None:
        """The manager takes up to ``limit`` frames and acknowledges them."""
        for frame in list(itertools.islice(spool.pending(), limit)):
            raw = spool.read(frame)
            assert raw is not None
            _, records, _ = frames.decode(raw)
            known = self.committed.setdefault(frame.identity, records)
            assert known == records, "an identity was used for two contents"
            epoch, boot, lane, seq = frame.identity
            spool.acknowledge(ack(epoch, boot, lane, (seq, seq)))

    def counted(self) -> int:
        records = itertools.chain.from_iterable(self.committed.values())
        return sum(record.n for record in records if isinstance(record, Window))

    def evicted(self) -> int:
        records = list(itertools.chain.from_iterable(self.committed.values()))
        stones = [record for record in records if isinstance(record, Tombstone)]
        names = [(stone.boot, stone.lane, stone.first) for stone in stones]
        assert len(set(names)) == len(names), "a tombstone was sent twice under two identities"
        return sum(stone.inferences for stone in stones)


def _live(disk, root, ledger: Ledger) -> None:
    """Two boots with appends, acks and evictions."""
    for boot in range(2):
        spool = Spool.open(disk, root, CLOCK, LIMITS)
        epoch = spool.cursor.epoch
        for number in range(22):
            n = 1 + number
            upcoming = (epoch, spool.cursor.boot, 1, number)
            ledger.attempted[upcoming] = n
            identity = spool.append(Lane.HEALTH, [window(n)], sync=True)
            ledger.stored[identity[0], identity[1], 1, identity[2]] = n
            if number % 5 == 2:
                event = DeviceEvent(kind="k", detail=f"{boot}-{number}", at=1.0)
                spool.append(Lane.AUDIT, [event])
            if number % 7 == 3:
                ledger.commit(spool, 2)
                spool.maintain()


def _finish(root, ledger: Ledger) -> Spool:
    spool = Spool.open(PosixDisk(), root, CLOCK, LIMITS)
    ledger.commit(spool, 10**6)
    spool.maintain()
    return spool


def _check(ledger: Ledger, spool: Spool) -> None:
    stored, attempted = sum(ledger.stored.values()), sum(ledger.attempted.values())
    total = ledger.counted() + ledger.evicted()
    # The append that was cut may have made it to the disk or not; everything else is exact.
    assert total in (stored, attempted)
    assert spool.cursor.acked_inferences == ledger.counted()
    assert spool.cursor.evicted_inferences == ledger.evicted()
    assert spool.live_inferences == 0
    assert spool.report().frames_unacked == 0


def _operations(tmp_path) -> int:
    disk = FaultyDisk()
    ledger = Ledger()
    _live(disk, tmp_path / "dry", ledger)
    _check(ledger, _finish(tmp_path / "dry", ledger))
    assert ledger.evicted() > 0
    return disk.operations


def test_every_power_cut_keeps_every_stored_inference_exactly_once(tmp_path):
    for crash_at in range(_operations(tmp_path)):
        root, ledger = tmp_path / str(crash_at), Ledger()
        with pytest.raises(PowerCut):
            _live(FaultyDisk(crash_at=crash_at, seed=crash_at), root, ledger)
        _check(ledger, _finish(root, ledger))


def test_every_power_cut_during_recovery_too(tmp_path):
    for first, second in itertools.product(range(20, 70, 7), range(8)):
        root, ledger = tmp_path / f"{first}-{second}", Ledger()
        with pytest.raises(PowerCut):
            _live(FaultyDisk(crash_at=first, seed=first), root, ledger)
        with contextlib.suppress(PowerCut):
            Spool.open(FaultyDisk(crash_at=second, seed=second), root, CLOCK, LIMITS)
        _check(ledger, _finish(root, ledger))


def test_full_disk_refuses_and_loses_nothing_that_was_accepted(tmp_path):
    for full_from in range(2, _operations(tmp_path), 3):
        root, ledger = tmp_path / str(full_from), Ledger()
        with contextlib.suppress(ResourceError):
            _live(FaultyDisk(full_from=full_from, seed=full_from), root, ledger)
        ledger.attempted = dict(ledger.stored)
        spool = _finish(root, ledger)
        assert ledger.counted() + ledger.evicted() >= sum(ledger.stored.values())
        assert spool.cursor.evicted_inferences >= ledger.evicted()
