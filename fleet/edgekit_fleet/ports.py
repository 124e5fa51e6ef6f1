"""What ingest and publisher need from the outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Incoming:
    """One message from the broker, not yet acknowledged to it.

    ``session`` numbers the connection it came over: an acknowledgement must never go to another.
    """

    topic: str
    payload: bytes
    retained: bool
    mid: int
    qos: int
    session: int


class Link(Protocol):
    """Connection to the broker; every method may be called from any thread."""

    @property
    def connected(self) -> bool:
        """Connected *and* subscribed."""
        ...

    def publish(
        self, topic: str, payload: bytes, *, retain: bool, on_taken: Callable[[], None] | None
    ) -> bool:
        """Hand one QoS 1 message to the broker; ``on_taken`` runs when the broker has taken it.

        Returns:
            False when there is no connection: nothing was queued.
        """
        ...

    def acknowledge(self, message: Incoming) -> None:
        """Tell the broker that ``message`` is dealt with."""
        ...
