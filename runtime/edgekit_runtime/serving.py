"""`Serving`: what is to answer for one model now, and where its answers are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.contracts.messages import SlotRef
from edgekit_runtime.ports import Loaded
from edgekit_runtime.region import Region
from edgekit_runtime.shelf import Shelf


@dataclass(frozen=True)
class Live:
    """A loaded bundle, where it is counted, and what it is called."""

    loaded: Loaded
    region: Region
    ref: SlotRef
    slot: str


class Serving:
    """One model's serving side: set by the control thread, carried out by the front."""

    def __init__(self, model: str, shelf: Shelf, changed: Callable[[Serving], None]) -> None:
        self.model = model
        self.shelf = shelf
        self._changed = changed
        self._live: Live | None = None

    @property
    def live(self) -> Live | None:
        """What is to serve now. May be read by any thread."""
        return self._live

    def switch(self, live: Live) -> None:
        """Serve ``live``; what served before ends when it has answered."""
        self._live = live
        self._changed(self)

    def stop(self) -> None:
        """Serve nothing."""
        self._live = None
        self._changed(self)
