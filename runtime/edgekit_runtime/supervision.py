"""When a worker counts as stuck, how its end is told, and when it is started again. Pure."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Collection
from enum import Enum

import msgspec

STUCK_P99_FACTOR = 10.0  # lower: a cold cache is called stuck; higher: a hang lasts longer
CRASHES_MAX = 3  # of a confirmed bundle within CRASH_WINDOW_S: then its fallback takes over
CRASH_WINDOW_S = 600.0  # research: two or three crashes in ten minutes are no accident
RESTART_S_BASE = 0.5
OUTSIDE_S = 2.0  # between looks whether what it stands on is back
RESTART_S_MAX = 60.0  # a device without a fallback tries for ever, but not all the time
EXIT_MEMORY = 6  # a worker's exit code when an allocation failed


class EndKind(Enum):
    """How a worker ended."""

    CRASH = "crash"
    STUCK = "stuck"
    MEMORY = "memory"
    OUTSIDE = "outside"  # the container engine went away: says nothing about the bundle


class Ending(msgspec.Struct, frozen=True):
    """Why a model no longer answers."""

    kind: EndKind
    reason: str
    words: str = ""  # what its process wrote last, shortly before

    @property
    def story(self) -> str:
        """The reason, with its last words."""
        return f"{self.reason}; it said: {self.words}" if self.words else self.reason


def stuck_limit_s(stuck_s_min: float, latencies_s: Collection[float]) -> float:
    """How long one inference may take: ten times the p99 seen, never less than the cold start."""
    if not latencies_s:
        return stuck_s_min
    ordered = sorted(latencies_s)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return max(stuck_s_min, STUCK_P99_FACTOR * p99)


def describe_exit(code: int, who: str = "its worker") -> Ending:
    """What an exit code says."""
    if code == EXIT_MEMORY:
        return Ending(EndKind.MEMORY, f"{who} ran out of memory")
    if code >= 0:
        return Ending(EndKind.CRASH, f"{who} ended with exit code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return Ending(EndKind.CRASH, f"{who} was ended by {name}")


class Crashes(msgspec.Struct):
    """Ends of one model's workers, and when the next may start."""

    ends: deque[float] = msgspec.field(default_factory=deque)
    last: Ending | None = None
    start_at: float = 0.0

    def add(self, ending: Ending, now: float) -> None:
        """Another one ended at ``now`` (monotonic seconds)."""
        self.count(now)
        self.last = ending
        if ending.kind is EndKind.OUTSIDE:
            self.start_at = now + OUTSIDE_S
            return
        self.ends.append(now)
        again = len(self.ends) - 1  # the first restart is immediate
        pause = 0.0 if again == 0 else RESTART_S_BASE * 2.0 ** min(again - 1, 16)
        self.start_at = now + min(RESTART_S_MAX, pause)

    def count(self, now: float) -> int:
        """Ends within the window."""
        while self.ends and self.ends[0] < now - CRASH_WINDOW_S:
            self.ends.popleft()
        return len(self.ends)
