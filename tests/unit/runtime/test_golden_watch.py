"""When golden sets are replayed, and what becomes of the outcome."""

from __future__ import annotations

import time

import pytest
from agentkit import layouts
from agentkit.hosts import LocalHost

from edgekit.contracts.messages import ClockQuality, Policy, SlotRef
from edgekit.contracts.states import SlotState
from edgekit_runtime import golden_watch
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.golden_watch import GoldenWatch, Kept, Now, due, scheduled
from edgekit_runtime.record import DeploymentRecord, ModelRecord

ENGINES = {"onnxruntime": "1.2"}
DAY = 86400.0


def _now(wall=10 * DAY, uptime_s=1.0, quality=ClockQuality.SYNCED, due_at=10 * DAY - 60):
    return Now(wall, uptime_s, quality, due_at)


@pytest.mark.parametrize(
    ("kept", "now", "tested_at_s", "reason"),
    [
        (Kept(engines={"onnxruntime": "1.1"}), _now(), None, "engine changed"),
        (Kept(engines=ENGINES), _now(uptime_s=1.0), None, ""),
        (Kept(engines=ENGINES), _now(uptime_s=60.0), None, "after start"),
        (Kept(at=9 * DAY, engines=ENGINES), _now(), 0.0, "nightly"),
        (Kept(at=10 * DAY - 30, engines=ENGINES), _now(), 0.0, ""),
        (Kept(at=9 * DAY, engines=ENGINES), _now(due_at=None), 0.0, ""),
        (Kept(), _now(quality=ClockQuality.UNKNOWN, uptime_s=DAY - 1), 0.0, ""),
        (Kept(), _now(quality=ClockQuality.UNKNOWN, uptime_s=DAY), 0.0, "daily"),
    ],
)
def test_when_it_is_due(kept, now, tested_at_s, reason):
    assert due(kept, now, ENGINES, tested_at_s=tested_at_s) == reason


def test_the_hour_is_local_and_lies_in_the_past():
    assert scheduled(-1, 1e9) is None
    for hour in (0, 3, 23):
        at = scheduled(hour, 1e9)
        assert 1e9 - DAY < at <= 1e9
        assert time.localtime(at).tm_hour == hour


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def wall(self):
        return 1e9 + self.now

    def monotonic(self):
        return self.now

    def quality(self):
        return ClockQuality.UNKNOWN


def _run(watch, record, events) -> str:
    watch.advance(record)
    end = time.monotonic() + 60
    while not events and time.monotonic() < end:
        watch.advance(record)
        time.sleep(0.01)
    return events.pop().detail


def test_outcome_is_told_and_an_engine_change_is_noticed_at_the_next_start(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "s")
    good, bad = writer.add(seed=1), writer.add(seed=2, golden_seed=3, version="2")
    events: list = []

    def watch(version):
        return GoldenWatch(
            PosixDisk(), writer.root, clock, LocalHost(writer.root), hour=3,
            engines=lambda: {"onnxruntime": version}, emit=events.append, wake=lambda: None,
        )  # fmt: skip

    def record(digest, *, overlap=True):
        ref = SlotRef(
            digest=digest, version="1", target="x86-64-v3", release="r", rollout="o", wave=0
        )
        model = ModelRecord(
            state=SlotState.CONFIRMED, active=ref, confirmed=True, policy=Policy(overlap=overlap)
        )
        return DeploymentRecord(models={"meter": model})

    clock = Clock()
    first = watch("1")
    first.advance(record(good))
    assert events == []
    clock.now += golden_watch.AFTER_START_S
    assert _run(first, record(good), events).endswith("passed")
    detail = _run(watch("2"), record(bad), events)
    assert detail.startswith("engine changed: meter ")
    assert "failed: golden set" in detail
    alone = record(bad, overlap=False)  # no second copy is loaded beside the first
    assert "policy.overlap is false" in _run(watch("3"), alone, events)
