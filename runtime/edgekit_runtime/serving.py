"""`Serving`: what is to answer for one model now, and where its answers are counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from edgekit.contracts.messages import SlotRef
from edgekit_runtime.ports import Loaded
from edgekit_runtime.region import Region
from edgekit_runtime.samples import Buffer
from edgekit_runtime.shelf import Shelf


class Live(msgspec.Struct, frozen=True):
    """A loaded bundle, where it is counted, and what it is called."""

    loaded: Loaded
    region: Region
    ref: SlotRef
    slot: str


class Companion(msgspec.Struct, frozen=True):
    """A candidate beside what serves.

    In its shadow it is sent a ``share`` of what was answered (into ``buffer``, when it is to be
    replayed later; it is not loaded then). In a split it answers that share itself.
    """

    live: Live | None
    region: Region
    share: float
    abs: float = 0.0
    rel: float = 0.0
    buffer: Buffer | None = None
    split: bool = False


class Serving:
    """One model's serving side: set by the control thread, carried out by the front."""

    def __init__(self, model: str, shelf: Shelf, changed: Callable[[Serving], None]) -> None:
        self.model = model
        self.shelf = shelf
        self._changed = changed
        self._live: Live | None = None
        self._companion: Companion | None = None
        self.abandoned: deque[Loaded] = deque()  # were to answer a share: the front ends them

    @property
    def live(self) -> Live | None:
        """What is to serve now. May be read by any thread."""
        return self._live

    @property
    def companion(self) -> Companion | None:
        """What is to stand beside it now. May be read by any thread."""
        return self._companion

    def switch(self, live: Live) -> None:
        """Serve ``live``; what served before ends when it has answered."""
        self._live = live
        beside = self._companion.live if self._companion is not None else None
        if beside is not None and beside.loaded is live.loaded:
            self._companion = None  # it takes over
        self._changed(self)

    def accompany(self, companion: Companion | None) -> None:
        """Have ``companion`` beside what serves, or nothing any more."""
        before = self._companion
        if companion is not before:
            self._companion = companion
            if before is not None and before.split and before.live is not None:
                self.abandoned.append(before.live.loaded)
            self._changed(self)

    def stop(self) -> None:
        """Serve nothing."""
        self._live = None
        self._changed(self)
