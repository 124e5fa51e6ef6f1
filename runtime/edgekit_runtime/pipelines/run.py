"""Moves items from the queue through the agent's endpoint to the sinks, one after the other.

Every item ends inferred, refused or dropped, is counted once, and its source is told: at once, or
with ``drop = "block"``, where nothing may be given up, when every sink has its answer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

from edgekit.contracts.backoff import Backoff
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError, EdgekitError
from edgekit_runtime.journal import hash_id
from edgekit_runtime.pipelines import answers, decode
from edgekit_runtime.pipelines.counts import DEATHS_MAX, Counts, State
from edgekit_runtime.pipelines.endpoint import (
    Answer,
    AwayError,
    Endpoint,
    EngineFailedError,
    TooLargeError,
)
from edgekit_runtime.pipelines.intake import Fate, Intake, Item, Outcome
from edgekit_runtime.pipelines.spec import Drop, PipelineSpec
from edgekit_runtime.ports import Array
from edgekit_runtime.sinks.outlet import Line
from edgekit_runtime.sources.admission import Admission

TAKE_S = 0.2
PROBE_S = 1.0  # between looks whether the model serves, while there is nothing to infer
WAIT_S_BASE, WAIT_S_MAX = 0.1, 5.0
log = logging.getLogger(__name__)


class Outlet(Protocol):
    """What the run needs of `edgekit_runtime.sinks.outlet.Outlet`."""

    def put(self, line: Line) -> None:
        """Queue an answer."""


class Runner:
    """One thread's."""

    def __init__(
        self,
        *,
        spec: PipelineSpec,
        counts: Counts,
        intake: Intake,
        admission: Admission,
        endpoint: Endpoint,
        outlets: Sequence[Outlet],
    ) -> None:
        self._spec, self._counts, self._intake = spec, counts, intake
        self._admission, self._stopping = admission, admission.stopping
        self._endpoint, self._outlets = endpoint, outlets
        self._contract: Contract | None = None
        self._waiting = True  # for the model
        self._probed_at = -PROBE_S
        self._told = ""
        admission.changed = self.show

    def run(self) -> None:
        """Until the process is told to end."""
        self.show()
        while not self._stopping.is_set():
            item = self._intake.take(TAKE_S)
            if item is not None:
                self._one(item)
            elif self._waiting and monotonic() - self._probed_at >= PROBE_S:
                self._look()

    def show(self) -> None:
        """Say on the page what the process is doing."""
        door = self._admission
        if door.away:
            state = State.AWAY
        elif self._waiting:
            state = State.WAITING
        else:
            state = State.ENDED if door.ended and not len(self._intake) else State.RUNNING
        if self._counts.state is not state:
            self._counts.state = state

    def _one(self, item: Item) -> None:
        try:
            answer = self._answered(item)
            body = self._body(item, answer) if answer is not None else b""
        except TooLargeError as exc:
            self._refuse(item, "too_large", exc.message)
        except MemoryError:  # of one item; the next may be smaller
            self._refuse(item, "too_large", "out of memory")
        except EngineFailedError as exc:
            self._refuse(item, "engine", exc.message)
        except Exception as exc:  # a bug of ours: given again, the item would end us again
            log.exception("%s", item.id)
            self._refuse(item, "internal", f"{type(exc).__name__}: {exc}")
        else:
            if body:
                self._hand_on(item, body)
        self.show()

    def _answered(self, item: Item) -> Answer | None:
        """The answer; None when the item has ended otherwise."""
        backoff = Backoff(base_s=WAIT_S_BASE, cap_s=WAIT_S_MAX)
        arrays: dict[str, Array] | None = None
        refusal: tuple[Contract, str] | None = None
        while True:
            if self._stale(item):
                self._drop(item, "stale")
                return None
            try:
                contract = self._contract or self._probe()
                if refusal is not None and refusal[0] == contract:
                    self._refuse(item, "contract", refusal[1])
                    return None
                arrays = arrays or self._arrays(item, contract)
                if arrays is None:
                    return None
                answer = self._endpoint.infer(item.id, arrays, item.at)
            except AwayError as exc:
                if not self._wait(item, exc, backoff):
                    return None
            except TooLargeError:
                raise
            except BadInputError as exc:
                # A new version may ask for something else than the one before: look once.
                refusal, arrays, self._contract = (contract, exc.message), None, None
            else:
                self._be_waiting(waiting=False)
                return answer

    def _arrays(self, item: Item, contract: Contract) -> dict[str, Array] | None:
        if not self._counts.may_decode(hash_id(item.id)):
            self._refuse(item, "decode", f"it ended the process {DEATHS_MAX} times")
            return None
        try:
            return decode.arrays_of(contract, self._spec.source, item.payload)
        except EdgekitError as exc:
            self._refuse(item, "decode", exc.message)
            return None
        finally:
            self._counts.decoded()

    def _probe(self) -> Contract:
        """The contract of what serves now. Raises `AwayError` when nothing does."""
        self._probed_at = monotonic()
        self._contract = self._endpoint.model().edgekit_contract
        self._be_waiting(waiting=False)
        return self._contract

    def _look(self) -> None:
        with contextlib.suppress(AwayError):
            self._probe()

    def _wait(self, item: Item, exc: AwayError, backoff: Backoff) -> bool:
        """Until the model may be asked again; False when the item has ended meanwhile."""
        self._counts.add("waits")
        self._be_waiting(waiting=True)
        if exc.message != self._told:  # one line a reason, not one a try
            self._told = exc.message
            log.warning("waiting: %s", exc.message)
        asked_s = exc.retry_after_s
        end = monotonic() + (backoff.next_delay_s() if asked_s is None else asked_s)
        while (left := end - monotonic()) > 0:
            if self._stopping.wait(min(TAKE_S, left)):
                self._counts.drop("ended")
                item.settle(Fate(Outcome.RETURNED))
                return False
            # What is in hand is the oldest of all.
            if self._spec.policy is Drop.OLDEST and self._intake.full():
                self._drop(item, "queue_full")
                return False
        return True

    def _be_waiting(self, *, waiting: bool) -> None:
        if self._waiting is not waiting:
            self._waiting = waiting
            self.show()
        if not waiting and self._told:
            log.info("goes on")
            self._told = ""

    def _stale(self, item: Item) -> bool:
        limit = self._spec.age_s_max
        return bool(limit) and time.time() - item.at > limit

    def _refuse(self, item: Item, reason: str, detail: str) -> None:
        self._counts.refuse(reason)
        item.settle(Fate(Outcome.REFUSED, f"{reason}: {detail}"))

    def _drop(self, item: Item, reason: str) -> None:
        self._counts.drop(reason)
        item.settle(Fate(Outcome.DROPPED, reason))

    def _body(self, item: Item, answer: Answer) -> bytes:
        assert self._contract is not None
        return answers.line(self._spec.name, self._contract, item, answer)

    def _hand_on(self, item: Item, body: bytes) -> None:
        done = Countdown(len(self._outlets), lambda: item.settle(Fate(Outcome.INFERRED)))
        waits = self._spec.policy is Drop.BLOCK
        self._counts.add("inferred")
        for outlet in self._outlets:
            outlet.put(Line(item.id, body, done if waits else _nothing))
        if not waits:
            item.settle(Fate(Outcome.INFERRED))


class Countdown:
    """Calls ``then`` when it was called ``count`` times. Thread-safe."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left, self._then = count, then
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Once more."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._then()


def _nothing() -> None:
    """Nobody waits for this answer's delivery."""
