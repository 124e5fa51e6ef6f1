"""Whatever lies in a spool folder, it starts, and every undamaged frame is still there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from agentkit.records import ack, window
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgekit.contracts.frames import Lane
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.spool import Spool, SpoolLimits

CLOCK, DISK = SystemClock(), PosixDisk()
LIMITS = SpoolLimits(bytes_max=1 << 20, segment_bytes=700)


def _fill(root: Path, count: int) -> list[tuple[int, int]]:
    spool = Spool.open(DISK, root, CLOCK, LIMITS)
    return [spool.append(Lane.HEALTH, [window(n + 1)])[1:] for n in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 12),
    victim=st.integers(0, 10**6),
    damage=st.sampled_from(["cut", "flip", "zero_tail", "garbage_tail", "empty"]),
    where=st.floats(0, 1, exclude_max=True),
)
def test_damage_costs_at_most_the_frames_it_touches(count, victim, damage, where):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _fill(root, count)
        files = sorted((root / "p1").iterdir())
        path = files[victim % len(files)]
        data = bytearray(path.read_bytes())
        position = int(where * len(data))
        touched = 1
        if damage == "cut":
            data = data[:position]
            touched = count
        elif damage == "flip":
            data[position] ^= 0x40
        elif damage == "zero_tail":
            data += bytes(300)
            touched = 0
        elif damage == "garbage_tail":
            data += b"EKF1" + bytes(range(200))
            touched = 0
        else:
            data = bytearray()
            touched = count
        path.write_bytes(data)
        spool = Spool.open(DISK, root, CLOCK, LIMITS)
        found = [frame for frame in spool.pending() if frame.lane == 1]
        assert len(found) >= count - touched
        assert all(spool.read(frame) is not None for frame in found)
        if damage in ("flip", "zero_tail", "garbage_tail"):
            assert spool.cursor.damaged >= 1
        assert spool.append(Lane.HEALTH, [window(1)])[1] == 2  # the next boot


class SpoolTwin(RuleBasedStateMachine):
    """The spool beside a dictionary that never forgets."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.live: dict[tuple[int, int, int], int] = {}
        self.acked = 0
        self.spool = Spool.open(DISK, self.root, CLOCK, LIMITS)

    @rule(lane=st.sampled_from([Lane.AUDIT, Lane.HEALTH, Lane.SAMPLE]), n=st.integers(0, 9))
    def append(self, lane: Lane, n: int) -> None:
        _, boot, seq = self.spool.append(lane, [window(n)])
        assert (lane.value, boot, seq) not in self.live
        self.live[lane.value, boot, seq] = n

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        lane, boot, seq = data.draw(st.sampled_from(sorted(self.live)))
        last = seq + data.draw(st.integers(0, 3))
        self.spool.acknowledge(ack(self.spool.cursor.epoch, boot, lane, (seq, last)))
        for number in range(seq, last + 1):
            self.acked += self.live.pop((lane, boot, number), 0)

    @rule()
    def maintain(self) -> None:
        self.spool.maintain()

    @rule(persist=st.booleans())
    def restart(self, persist: bool) -> None:
        if persist:
            self.spool.maintain()
            self.spool = Spool.open(DISK, self.root, CLOCK, LIMITS)
            return
        # Unpersisted acks come back as live frames; a manager acknowledges them again.
        before = dict(self.live)
        self.spool = Spool.open(DISK, self.root, CLOCK, LIMITS)
        for frame in list(self.spool.pending()):
            key = (frame.lane, frame.boot, frame.seq)
            if key not in before:
                self.spool.acknowledge(
                    ack(frame.epoch, frame.boot, frame.lane, (frame.seq, frame.seq))
                )

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "spool"):
            return
        found = {(f.lane, f.boot, f.seq) for f in self.spool.pending()}
        assert found == set(self.live)
        assert self.spool.live_inferences == sum(self.live.values())
        assert self.spool.cursor.acked_inferences == self.acked
        assert self.spool.report().frames_unacked == len(self.live)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


SpoolTwin.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
test_spool_twin = SpoolTwin.TestCase
