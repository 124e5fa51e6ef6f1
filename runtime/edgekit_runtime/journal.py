"""Where one model's inferences are counted, and which request ids were: the counting host's side.

A request id is counted once: an id still found in any of the model's rings is answered again but
not counted again, also after a restart (the look-up is rebuilt from the rings). Labels that arrive
later join the prediction they belong to, in the region of the version that made it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import msgspec
import numpy as np

from edgekit.contracts.errors import BugError, ResourceError
from edgekit_runtime.kinds import Kind
from edgekit_runtime.region import CAPACITY, CORRECT, Region, Sight

_NOTHING = Sight()


def hash_id(request_id: str | None) -> int:
    """64-bit hash of a request id; 0 stands for none."""
    if not request_id:
        return 0
    raw = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little") or 1


class _Book(msgspec.Struct):
    """Look-ups over one region's ring: request hash -> position."""

    region: Region
    counted: dict[int, int] = msgspec.field(default_factory=dict)
    labelled: dict[int, int] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        head = self.region.head  # once: in a split, another process appends meanwhile
        first = max(0, head - CAPACITY)
        records = self.region.records(first, head)
        good = self.region.intact(first, head)  # read later: what was overwritten is not
        named = np.flatnonzero(good & (records["request"] != 0))
        kinds, requests = records["kind"][named].tolist(), records["request"][named].tolist()
        for position, kind, request in zip((first + named).tolist(), kinds, requests, strict=True):
            self._note(kind, request, position)

    def append(  # noqa: PLR0917 - the hot path: each keyword costs
        self,
        kind: Kind,
        request: int,
        time: float,
        latency_us: float,
        sight: Sight,
        flags: int,
    ) -> int | None:
        region, head = self.region, self.region.head
        if head >= CAPACITY and head - region.tail < CAPACITY:
            self._forget(head - CAPACITY)
        cls, confidence, broken, bins = sight
        position = region.append(
            kind, request, time, latency_us, confidence, cls, flags, broken, bins
        )
        if position is not None and request:
            self._note(kind, request, position)
        return position

    def _note(self, kind: int, request: int, position: int) -> None:
        if request and kind in (Kind.PREDICTION, Kind.ERROR):
            self.counted[request] = position
        elif request and kind == Kind.FEEDBACK:
            self.labelled[request] = position

    def _forget(self, position: int) -> None:
        request = int(self.region.ring["request"][position % CAPACITY])
        for book in (self.counted, self.labelled):
            if book.get(request) == position:
                del book[request]


class Journal:
    """The regions one host counts in or looks request ids up in. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._books: list[_Book] = []
        self.foreign: Callable[[Region], bool] = lambda _region: False  # another host writes to it

    def add(self, region: Region) -> None:
        """Make ``region`` known; the newest is last."""
        with self._lock:
            self._books.append(_Book(region))

    def record(  # noqa: PLR0917 - the hot path: each keyword costs
        self,
        region: Region,
        kind: Kind,
        request: int,
        time: float,
        latency_us: float = 0.0,
        sight: Sight = _NOTHING,
        flags: int = 0,
    ) -> bool:
        """Commit an inference or a rejection to ``region``; ``request`` is `hash_id` of its id.

        Returns:
            False when the request id was counted before (nothing is written then).
        """
        with self._lock:
            if request:
                for book in self._books:
                    if request in book.counted:
                        return False
            for book in self._books:
                if book.region is region:
                    book.append(kind, request, time, latency_us, sight, flags)
                    return True
            raise BugError("the journal does not know this region")

    def knows(self, request: int) -> bool:
        """Whether a label for this id can be joined here; ``request`` is its `hash_id`."""
        with self._lock:
            return any(request in book.counted for book in self._ours())

    def _ours(self) -> list[_Book]:
        return [book for book in self._books if not self.foreign(book.region)]

    def feedback(self, request_id: str, label: int, *, time: float) -> bool | None:
        """Join a true label with its prediction.

        Returns:
            Whether the prediction was right; None when the id is no longer (or was never) known.

        Raises:
            ResourceError: the ring is full and the label could not be kept.
        """
        request = hash_id(request_id)
        with self._lock:
            for book in self._ours():
                position = book.counted.get(request)
                if position is None:
                    continue
                found = book.region.ring[position % CAPACITY]
                right = int(found["cls"]) == label and int(found["kind"]) == Kind.PREDICTION
                if request in book.labelled:
                    return right
                flags = CORRECT if right else 0
                done = book.append(Kind.FEEDBACK, request, time, 0.0, Sight(label), flags)
                if done is None:
                    raise ResourceError(
                        "the counter ring is full, the label was not taken",
                        hint="send it again in a second",
                    )
                return right
        return None

    def close(self) -> None:
        """Unmap every region."""
        for book in self._books:
            book.region.close()
