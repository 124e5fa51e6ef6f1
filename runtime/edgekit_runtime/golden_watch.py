"""Replays golden sets beside what serves: nightly, after a start, and when an engine has changed.

A bundle that passed when it was activated may fail later: a driver or an engine was updated, memory
went bad, a clock speed was raised. The outcome is an audit record of kind ``selftest``; what serves
is left alone, because the manager sees fleet-wide whether it is the bundle or the device.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import ClockQuality, DeviceEvent, Record
from edgekit_runtime.jobs import Done, JobRunner
from edgekit_runtime.ports import Clock, Disk, Host
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.twocopy import TwoCopy

NAME = "selftest"
AFTER_START_S = 60.0  # sooner: it competes with the start of the device's own applications
DAY_S = 86400.0
log = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is persisted: when the last replay was, and with which engines."""

    at: float = 0.0
    engines: dict[str, str] = {}


class Now(msgspec.Struct, frozen=True):
    """The moment, in every way it is needed."""

    wall: float
    uptime_s: float
    quality: ClockQuality
    due_at: float | None  # Unix time of the newest scheduled hour; None: not by the clock


def due(kept: Kept, now: Now, engines: Mapping[str, str], *, tested_at_s: float | None) -> str:
    """Why the golden sets are to be replayed now; empty when they are not. Pure.

    ``tested_at_s``: uptime at the last replay of this process, None when there was none.
    """
    if tested_at_s is None and kept.engines and dict(engines) != kept.engines:
        return "engine changed"
    if tested_at_s is None:
        return "after start" if now.uptime_s >= AFTER_START_S else ""
    if now.due_at is None:
        return ""
    if now.quality is ClockQuality.SYNCED:
        return "nightly" if kept.at < now.due_at <= now.wall else ""
    # Nobody knows the hour: once a day by the clock that cannot jump.
    return "daily" if now.uptime_s - tested_at_s >= DAY_S else ""


def scheduled(hour: int, wall: float) -> float | None:
    """Unix time at which local ``hour`` was last; None when ``hour`` is -1."""
    if hour < 0:
        return None
    local = time.localtime(wall)
    at = time.mktime((local.tm_year, local.tm_mon, local.tm_mday, hour, 0, 0, 0, 0, -1))
    return at if at <= wall else at - DAY_S


class GoldenWatch:
    """Belongs to the control thread."""

    def __init__(
        self,
        disk: Disk,
        state_dir: Path,
        clock: Clock,
        host: Host,
        *,
        hour: int,
        engines: Callable[[], Mapping[str, str]],
        emit: Callable[[Record], None],
        wake: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._host = host
        self._hour = hour
        self._engines = engines
        self._emit = emit
        self._file = TwoCopy(disk, state_dir, NAME, Kept)
        self._kept = self._file.load().value or Kept()
        self._jobs = JobRunner(wake)
        self._started = clock.monotonic()
        self._tested_at_s: float | None = None

    def advance(self, record: DeploymentRecord) -> None:
        """Replay when it is time, one replay at a time."""
        self._jobs.take()
        models = {name: model for name, model in record.models.items() if model.active}
        if self._jobs.busy or not models:
            return
        wall, uptime_s = self._clock.wall(), self._clock.monotonic() - self._started
        now = Now(wall, uptime_s, self._clock.quality(), scheduled(self._hour, wall))
        reason = due(self._kept, now, self._engines(), tested_at_s=self._tested_at_s)
        if not reason:
            return
        self._tested_at_s = uptime_s
        host = self._host
        self._jobs.start(
            "golden",
            lambda: {name: _replay(host, name, model) for name, model in sorted(models.items())},
            lambda done: self._told(reason, done),
        )

    def _told(self, reason: str, done: Done) -> None:
        if done.error is not None:
            outcome = done.error.message
        else:
            outcome = "; ".join(f"{name} {verdict}" for name, verdict in done.value.items())
        at = self._clock.wall()
        log.info("golden sets (%s): %s", reason, outcome)
        self._emit(DeviceEvent(kind=NAME, detail=f"{reason}: {outcome}"[:500], at=at))
        self._kept = Kept(at=at, engines=dict(self._engines()))
        self._file.save(self._kept)


def _replay(host: Host, name: str, model: ModelRecord) -> str:
    """Load a second copy, let it answer its golden set, unload it."""
    assert model.active is not None
    short = digests.short(model.active.digest)
    if not model.policy.overlap:
        return f"{short} not now: policy.overlap is false, it is replayed whenever it is loaded"
    try:
        host.load(name, model.active, model.policy, tested=True).close()
    except EdgekitError as exc:
        return f"{short} failed: {exc.message}"
    return f"{short} passed"
