"""What every source asks before an item is queued, and where all it says is counted."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from edgekit_runtime.pipelines.counts import Counts
from edgekit_runtime.pipelines.intake import Fate, Gate, Intake, Item, Outcome
from edgekit_runtime.pipelines.spec import Drop, PipelineSpec

ROOM_S = 0.2  # between looks whether the process is to end, while a source waits
_PLAIN = re.compile(r"[!-~]{1,200}")


class Source(Protocol):
    """Runs in a thread of its own."""

    def run(self) -> None:
        """Offer items until `Admission.stopping`.

        Raises:
            EdgekitError: it cannot work at all: the process ends and is started again later.
        """

    def close(self) -> None:
        """The last item is settled."""


class Admission:
    """The door of one pipeline. `admit` and `refuse` belong to the source's thread."""

    def __init__(
        self, spec: PipelineSpec, counts: Counts, intake: Intake, stopping: threading.Event
    ) -> None:
        self.spec = spec
        self.stopping = stopping
        self.away = False  # what the source reads from is not there
        self.ended = False  # and will not come again: a file is at its end
        self.changed: Callable[[], None] = lambda: None
        self._counts, self._intake = counts, intake
        self._gate = Gate(spec.share, spec.rate_max)
        self._waits = spec.policy is Drop.BLOCK

    def admit(self, item: Item) -> bool:
        """Queue an item; False when it was not taken (its `settle` was called then)."""
        self._counts.add("received")
        if not self._gate.sampled(item.id):
            return self._drop(item, "sampled")
        while (wait_s := self._gate.wait_s(monotonic())) > 0:
            if not self._waits:
                return self._drop(item, "rate")
            if self.stopping.wait(wait_s):
                return self._return(item)
        if self._waits:
            while not self._intake.wait_for_room(ROOM_S):
                if self.stopping.is_set():
                    return self._return(item)
        taken = True
        for gone in self._intake.offer(item):
            if self.stopping.is_set():
                self._return(gone)
            else:
                self._drop(gone, "queue_full")
            taken = taken and gone is not item
        return taken

    def refuse(self, item: Item, reason: str, detail: str) -> None:
        """Something arrived that cannot be an item."""
        self._counts.add("received")
        self._counts.refuse(reason)
        item.settle(Fate(Outcome.REFUSED, f"{reason}: {detail}"))

    def has_room(self) -> bool:
        """Whether a source that can wait should give the next item."""
        return not (self._waits and self._intake.full())

    def be(self, *, away: bool) -> None:
        """What the source reads from is there, or is not."""
        if self.away is not away:
            self.away = away
            self.changed()

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self.changed()

    def _drop(self, item: Item, reason: str) -> bool:
        self._counts.drop(reason)
        item.settle(Fate(Outcome.DROPPED, reason))
        return False

    def _return(self, item: Item) -> bool:
        self._counts.drop("ended")
        item.settle(Fate(Outcome.RETURNED))
        return False


def plain_id(text: str) -> str:
    """``text`` where it can stand in headers and logs, else a hash of it."""
    if _PLAIN.fullmatch(text):
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
