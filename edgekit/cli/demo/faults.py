"""Kill broker, manager and an agent while frames are in flight, and time their recovery.

A process is frozen first (SIGSTOP). Frozen, it cannot acknowledge, so telemetry that is on its way
stays un-acknowledged; the spools on the devices' disks are read until they show at least one such
frame. Then it is killed (SIGKILL) and started again: no kill happens while nothing is in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.cli.demo.processes import Daemon, wait_until

IN_FLIGHT_S = 15.0
RECOVERY_S = 45.0
DOWN_S = 1.0  # dead long enough that others notice


@dataclass(frozen=True)
class Fault:
    """One kill. ``unacked_at_kill`` frames were on disk, un-acknowledged, when it died."""

    killed: str
    pid: int
    pid_after: int
    at: float
    during: str
    unacked_at_kill: int
    gone: bool  # the pid had left /proc before the restart
    recovered_after_s: float


def kill(
    victim: Daemon, *, during: str, in_flight: Callable[[], int], recovered: Callable[[], bool]
) -> Fault:
    """Freeze, make sure that something is in flight, kill, restart, wait for recovery.

    Raises:
        UnavailableError: nothing came in flight, or no recovery within the bound.
    """
    victim.ensure_alive()
    unacked = 0

    def caught() -> bool:
        nonlocal unacked
        victim.freeze()
        unacked = in_flight()
        if unacked == 0 and victim.device:
            victim.thaw()  # a frozen agent sends nothing more: let it run and look again
        return unacked >= 1

    wait_until(f"{victim.name}: a frame in flight", caught, IN_FLIGHT_S)
    at = time.time()
    pid = victim.kill()
    gone = not Path(f"/proc/{pid}").exists()
    time.sleep(DOWN_S)
    victim.start()
    took = wait_until(f"{victim.name}: recovery", recovered, RECOVERY_S)
    return Fault(
        killed=victim.name,
        pid=pid,
        pid_after=victim.pid,
        at=at,
        during=during,
        unacked_at_kill=unacked,
        gone=gone,
        recovered_after_s=round(took, 3),
    )


def as_document(fault: Fault) -> dict[str, Any]:
    """JSON form."""
    return asdict(fault)
