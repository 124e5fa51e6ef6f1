"""Sends spool frames and re-sends them until the manager's own ack. PUBACK proves nothing.

At most `WINDOW_FRAMES` are out at a time. When nothing is acknowledged for a while, everything
un-acknowledged is sent again from the cursor; the pause doubles so that a fleet whose manager is
down does not keep the broker busy.
"""

from __future__ import annotations

from edgekit.contracts import topics
from edgekit.contracts.messages import Ack
from edgekit_runtime.ports import Clock, Link
from edgekit_runtime.spool import Frame, Spool
from edgekit_runtime.spool.index import Position

WINDOW_FRAMES = 64
REWIND_S_MIN = 1.0
REWIND_S_MAX = 8.0


class Uplink:
    """Belongs to the control thread."""

    def __init__(self, spool: Spool, link: Link, clock: Clock) -> None:
        self._spool = spool
        self._link = link
        self._clock = clock
        self._out: dict[tuple[int, int, int, int], Frame] = {}
        self._sent: dict[int, Position] = {}
        self._rewind_s = REWIND_S_MIN
        self._rewind_at = 0.0

    @property
    def in_flight(self) -> int:
        """Frames sent and not yet acknowledged."""
        return len(self._out)

    def reset(self) -> None:
        """A new connection: everything un-acknowledged is sent again."""
        self._out.clear()
        self._sent.clear()
        self._rewind_s = REWIND_S_MIN

    def acknowledge(self, ack: Ack) -> None:
        """The manager has committed frames."""
        if self._spool.acknowledge(ack):
            self._out = {key: f for key, f in self._out.items() if not self._spool.is_acked(f)}
            self._rewind_s = REWIND_S_MIN
            self._rewind_at = self._clock.monotonic() + self._rewind_s

    def pump(self) -> int:
        """Send what fits into the window; returns how many frames went out."""
        now = self._clock.monotonic()
        if not self._link.connected:
            return 0
        if self._out and now >= self._rewind_at:
            self._out.clear()
            self._sent.clear()
            self._rewind_s = min(REWIND_S_MAX, self._rewind_s * 2)
            self._rewind_at = now + self._rewind_s
        if len(self._out) >= WINDOW_FRAMES:
            return 0
        count = 0
        for frame in self._spool.pending(self._sent):
            raw = self._spool.read(frame)
            if raw is not None:
                if not self._link.publish(topics.TELEMETRY_LIVE, raw):
                    break
                if not self._out:
                    self._rewind_at = now + self._rewind_s
                self._out[frame.identity] = frame
                count += 1
            self._sent[frame.lane] = (frame.epoch, frame.boot, frame.seq)
            if len(self._out) >= WINDOW_FRAMES:
                break
        return count
