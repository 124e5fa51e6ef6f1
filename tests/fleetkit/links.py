"""A broker connection in memory: the port `Link`, with a switch."""

from __future__ import annotations

from collections.abc import Callable

from edgekit_fleet.ports import Incoming


class MemoryLink:
    """Records what it is given; ``take`` says whether the broker takes it at once."""

    def __init__(self, *, connected: bool = True, take: bool = True) -> None:
        self.connected = connected
        self.take = take
        self.published: list[tuple[str, bytes, bool]] = []
        self.acknowledged: list[Incoming] = []

    def publish(
        self, topic: str, payload: bytes, *, retain: bool, on_taken: Callable[[], None] | None
    ) -> bool:
        if not self.connected:
            return False
        self.published.append((topic, payload, retain))
        if self.take and on_taken is not None:
            on_taken()
        return True

    def acknowledge(self, message: Incoming) -> None:
        self.acknowledged.append(message)
