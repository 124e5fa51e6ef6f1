"""Outlet: the queue in front of one sink, and how often an answer is tried.

An answer ends delivered, failed (the sink refused it or too many tries), or dropped (no room, or
the process ended); each is counted, and only then `Line.done` is called.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import msgspec

from edgekit.contracts.backoff import Backoff
from edgekit.contracts.errors import EdgekitError, ResourceError, UnavailableError
from edgekit_runtime.pipelines.counts import Counts

IDLE_S = 1.0  # between looks of a sink at what it put off
RETRY_S_BASE, RETRY_S_MAX = 0.5, 30.0
log = logging.getLogger(__name__)


class Line(msgspec.Struct, frozen=True):
    """One answer as JSON; ``done`` is called once, whatever becomes of it."""

    id: str
    body: bytes
    done: Callable[[], None]


class Sink(Protocol):
    """One thread's."""

    def deliver(self, line: Line) -> None:
        """Have it stored where the sink leads.

        Raises:
            UnavailableError: not now; tried again. So is a `ResourceError`.
            EdgekitError: never.
        """

    def idle(self) -> None:
        """Called at least every `IDLE_S`."""

    def close(self) -> None:
        """Finish."""


class Outlet:
    """Queue and thread of one sink."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        counts: Counts,
        index: int,
        *,
        queue_max: int,
        attempts_max: int,
        blocks: bool,
    ) -> None:
        """Nothing queued.

        Args:
            name: for the log.
            sink: where to.
            counts: where every answer's end is counted.
            index: which sink of the pipeline it is.
            queue_max: answers that wait at most.
            attempts_max: tries of one answer; 0: until it is delivered.
            blocks: whether `put` waits for room; else the oldest gives way.
        """
        self._name, self._sink = name, sink
        self._counts, self._index = counts, index
        self._queue_max, self._attempts_max = queue_max, attempts_max
        self._blocks = blocks
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._until: float | None = None  # told to end; tries go on until then
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def put(self, line: Line) -> None:
        """Queue an answer."""
        gone: Line | None = None
        with self._changed:
            if self._blocks:
                self._changed.wait_for(
                    lambda: not self._blocks or len(self._lines) < self._queue_max
                )
            elif len(self._lines) >= self._queue_max:
                gone = self._lines.popleft()
            self._lines.append(line)
            self._changed.notify_all()
        if gone is not None:
            self._end(gone, "queue_full")

    def release(self) -> None:
        """`put` waits no more: the process ends, and whoever puts has one answer left."""
        with self._changed:
            self._blocks = False
            self._queue_max += 1  # for that one nothing has to give way
            self._changed.notify_all()

    def stop(self, grace_s: float) -> None:
        """Deliver for so long what waits; no more is put."""
        with self._changed:
            self._until = monotonic() + grace_s
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the end; what is left is counted by the next process."""
        self._thread.join(timeout_s)

    @property
    def _ending(self) -> bool:
        return self._until is not None

    @property
    def _over(self) -> bool:
        return self._until is not None and monotonic() > self._until

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ending, IDLE_S)
                line = self._lines.popleft() if self._lines else None
                self._changed.notify_all()
            if line is not None:
                self._end(line, "ended" if self._over else self._deliver(line))
            elif self._ending:
                break
            self._guarded(self._sink.idle)
        self._guarded(self._sink.close)

    def _deliver(self, line: Line) -> str:
        """What to count ``line`` as."""
        backoff = Backoff(base_s=RETRY_S_BASE, cap_s=RETRY_S_MAX)
        attempts = 0
        while True:
            attempts += 1
            try:
                self._sink.deliver(line)
            except (UnavailableError, ResourceError) as exc:
                self._tell(exc)
                if self._attempts_max and attempts >= self._attempts_max:
                    log.warning("%s: %s given up after %d tries", self._name, line.id, attempts)
                    return "failed"
                self._counts.sink(self._index, "retries")
                asked = exc.retry_after_s if isinstance(exc, UnavailableError) else None
                self._pause(backoff.next_delay_s() if asked is None else asked)
                if self._over:
                    return "ended"
            except EdgekitError as exc:
                log.warning("%s: %s: %s", self._name, line.id, exc.message)
                return "failed"
            except Exception:  # a bug here must not end the other sinks
                log.exception("%s: %s", self._name, line.id)
                return "failed"
            else:
                if self._failing:
                    log.info("%s: delivers again", self._name)
                self._failing = False
                return "delivered"

    def _pause(self, seconds: float) -> None:
        """Wait before the next try, no longer than the process still has."""
        end = monotonic() + seconds
        with self._changed:
            while (left := end - monotonic()) > 0 and not self._over:
                until = self._until
                self._changed.wait(left if until is None else min(left, until - monotonic() + 0.01))

    def _tell(self, exc: EdgekitError) -> None:
        """One line an outage, not one a try."""
        if not self._failing:
            log.warning("%s: %s (trying again)", self._name, exc.message)
        self._failing = True

    def _end(self, line: Line, how: str) -> None:
        self._counts.sink(self._index, how)
        line.done()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except EdgekitError as exc:
            self._tell(exc)
        except Exception:  # a bug here must not end the thread
            log.exception("%s", self._name)
