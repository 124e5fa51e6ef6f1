"""The queue between a source and the model: what is let in, and who gives way. No I/O.

`Gate` decides about one arriving item from the clock alone; `Intake` is the bounded queue.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec

from edgekit_runtime.pipelines.spec import Drop


class Outcome(str, Enum):
    """What became of an item, for its source."""

    INFERRED = "inferred"
    REFUSED = "refused"  # and always will be
    DROPPED = "dropped"  # given up by a rule of the pipeline
    RETURNED = "returned"  # the process ends; a source that can give it again should


class Fate(msgspec.Struct, frozen=True):
    """How an item ended."""

    outcome: Outcome
    reason: str = ""


class Item(msgspec.Struct, frozen=True):
    """One thing to infer."""

    id: str  # the request's: sent again under it, it is counted once
    payload: Any  # bytes, or a camera's array
    size: int
    at: float  # Unix seconds, of arrival or capture
    about: dict[str, Any] = {}  # for the sinks: topic, file, frame
    settle: Callable[[Fate], None] = lambda _fate: None


class Gate:
    """Sampling and rate limit. Not thread-safe: one source asks."""

    def __init__(self, share: float, rate_max: float) -> None:
        self._share = share
        self._rate_max = rate_max
        self._burst = max(1.0, rate_max)  # a second's worth
        self._tokens = self._burst
        self._at: float | None = None

    def sampled(self, item_id: str) -> bool:
        """Whether the item is in the share: the same answer for the same id, always."""
        if self._share >= 1.0:
            return True
        raw = hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(raw, "little") < self._share * 2**64

    def wait_s(self, now: float) -> float:
        """Seconds until the next item may pass; takes one when that is 0."""
        if not self._rate_max:
            return 0.0
        if self._at is not None:
            gained = max(0.0, now - self._at) * self._rate_max
            self._tokens = min(self._burst, self._tokens + gained)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate_max


class Intake:
    """A bounded queue with one reader. What gives way is returned, for its owner to count."""

    def __init__(self, policy: Drop, items_max: int, bytes_max: int) -> None:
        self._policy = policy
        self._items_max, self._bytes_max = items_max, bytes_max
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def full(self, size: int = 0) -> bool:
        """Whether an item of ``size`` bytes finds no room."""
        return len(self._items) >= self._items_max or self._bytes + size > self._bytes_max

    def offer(self, item: Item) -> list[Item]:
        """Queue ``item``; what had to give way, which may be ``item`` itself.

        With `Drop.BLOCK` the caller has asked `wait_for_room` before; it is never refused here.
        """
        with self._changed:
            if self._closed:
                return [item]
            gone: list[Item] = []
            if self._policy is Drop.NEWEST and self.full(item.size):
                return [item]
            while self._policy is Drop.OLDEST and self._items and self.full(item.size):
                gone.append(self._pop())
            self._items.append(item)
            self._bytes += item.size
            self._changed.notify_all()
            return gone

    def wait_for_room(self, timeout_s: float) -> bool:
        """Whether there is room, which is waited for."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not self.full(), timeout_s)

    def take(self, timeout_s: float) -> Item | None:
        """The next item; None when there is none for so long."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, timeout_s):
                return None
            item = self._pop()
            self._changed.notify_all()
            return item

    def close(self) -> list[Item]:
        """Take nothing more; what still waited."""
        with self._changed:
            self._closed = True
            left, self._bytes = list(self._items), 0
            self._items.clear()
            self._changed.notify_all()
            return left

    def _pop(self) -> Item:
        item = self._items.popleft()
        self._bytes -= item.size
        return item
