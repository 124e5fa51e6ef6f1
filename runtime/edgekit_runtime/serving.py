"""`Serving`: what answers for one model now, and where its answers are counted.

A switch is one assignment; a call that began before it finishes on the bundle it began with.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.contracts.messages import SlotRef
from edgekit_runtime.journal import Journal
from edgekit_runtime.ports import Clock, Loaded
from edgekit_runtime.region import Kind, Region


@dataclass(frozen=True)
class Observation:
    """What one call is counted as. ``kind`` None: the request never reached the model."""

    kind: Kind | None
    request: int = 0  # hash of the request id, 0 when there was none
    latency_us: float = 0.0
    cls: int = -1  # of the first row; -1 when the model does not classify
    confidence: float = float("nan")
    flags: int = 0


@dataclass(frozen=True)
class Live:
    """A loaded bundle, where it is counted, and what it is called."""

    loaded: Loaded
    region: Region
    ref: SlotRef
    slot: str


class Serving:
    """One model's serving side. Thread-safe."""

    def __init__(self, model: str, journal: Journal, clock: Clock) -> None:
        self.model = model
        self.journal = journal
        self._clock = clock
        self._live: Live | None = None

    @property
    def live(self) -> Live | None:
        """What serves now."""
        return self._live

    def switch(self, live: Live) -> None:
        """Serve ``live`` from the next call on; what served before ends when it has answered."""
        before, self._live = self._live, live
        if before is not None and before.loaded is not live.loaded:
            before.loaded.close()

    def stop(self) -> None:
        """Serve nothing."""
        before, self._live = self._live, None
        if before is not None:
            before.loaded.close()

    def count(self, live: Live, seen: Observation) -> bool:
        """Commit ``seen`` to the region of ``live``, before it is answered.

        Returns:
            False when its request id was counted before.
        """
        if seen.kind is None:
            return True
        return self.journal.record(
            live.region,
            seen.kind,
            seen.request,
            time=self._clock.wall(),
            latency_us=seen.latency_us,
            cls=seen.cls,
            confidence=seen.confidence,
            flags=seen.flags,
        )
