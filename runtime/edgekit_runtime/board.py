"""Board: memory in which a worker says what it is doing, also when it can no longer speak.

One worker writes, its agent reads; each word is one aligned 8-byte store. It outlives the worker:
that is how the agent knows since when a hung inference runs, and which of the dead worker's
connections were waiting for an answer. Figures begin anew with each worker.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence
from enum import IntEnum

from edgekit_runtime.kinds import Kind

# Seconds. From a small model on a fast core to a large one on a slow board.
EDGES_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
OUTCOMES = {Kind.PREDICTION: "answered", Kind.ERROR: "error", Kind.REJECTED: "rejected"}
REFUSALS = (400, 404, 405, 408, 413, 429, 431, 500, 503)  # statuses that are counted
_WORDS = 64
_BUSY, _FIRST, _LAST, _QUEUED, _LATENCY_NS = range(5)
_OUTCOME = 8  # words of outcomes, by kind
_BUCKET = 16
_REFUSAL = 32
_STATES = _WORDS * 8
assert _BUCKET + len(EDGES_S) + 1 <= _REFUSAL
assert _REFUSAL + len(REFUSALS) <= _WORDS


class Grip(IntEnum):
    """How a worker holds a connection."""

    NONE = 0
    IDLE = 1  # nothing received that was not answered
    ASKED = 2  # a request, or part of one, was received and not answered
    ANSWERING = 3  # part of an answer was sent


class Board:
    """Over a file descriptor that agent and worker share."""

    def __init__(self, descriptor: int, connections_max: int) -> None:
        self._map = mmap.mmap(descriptor, _STATES + connections_max)
        self._view = memoryview(self._map)
        self._words = self._view[:_STATES].cast("Q")
        self.grips = self._view[_STATES:]

    @staticmethod
    def create(connections_max: int) -> int:
        """A descriptor of an empty board, in memory. Raises `OSError`."""
        descriptor = os.memfd_create("edgekit-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _STATES + connections_max)
        return descriptor

    # --- the worker writes ---------------------------------------------------------------------

    def begin(self, now_ns: int) -> None:
        """An inference begins; monotonic nanoseconds."""
        self._words[_BUSY] = now_ns

    def end(self, now_ns: int) -> None:
        """It ended."""
        words = self._words
        words[_BUSY] = 0
        words[_LAST] = now_ns
        if not words[_FIRST]:
            words[_FIRST] = now_ns

    def count(self, kind: Kind, latency_us: float) -> None:
        """An inference, or an input refused, is answered."""
        words = self._words
        words[_OUTCOME + kind] += 1
        if kind is Kind.PREDICTION:
            words[_BUCKET + bisect_left(EDGES_S, latency_us / 1e6)] += 1
            words[_LATENCY_NS] += int(latency_us * 1e3)

    def refuse(self, status: int) -> None:
        """A request got an error status."""
        if status in REFUSALS:
            self._words[_REFUSAL + REFUSALS.index(status)] += 1

    def queue(self, length: int) -> None:
        """So many requests wait."""
        self._words[_QUEUED] = length

    # --- the agent reads -----------------------------------------------------------------------

    @property
    def busy_since_ns(self) -> int:
        """When the running inference began; 0 when none runs."""
        return self._words[_BUSY]

    @property
    def first_ns(self) -> int:
        """When the first inference ended; 0 before."""
        return self._words[_FIRST]

    @property
    def last_ns(self) -> int:
        """When the newest inference ended; 0 before the first."""
        return self._words[_LAST]

    @property
    def in_flight(self) -> int:
        """Requests received and not answered."""
        return self._words[_QUEUED] + (self._words[_BUSY] > 0)

    @property
    def outcomes(self) -> dict[str, int]:
        """Requests that reached the model, by how they ended."""
        return {name: self._words[_OUTCOME + kind] for kind, name in OUTCOMES.items()}

    @property
    def refusals(self) -> dict[int, int]:
        """Error answers, by status."""
        return {status: self._words[_REFUSAL + i] for i, status in enumerate(REFUSALS)}

    @property
    def buckets(self) -> Sequence[int]:
        """Latencies by `EDGES_S`, the last without an upper edge."""
        return list(self._words[_BUCKET : _BUCKET + len(EDGES_S) + 1])

    @property
    def latency_s(self) -> float:
        """Sum of all latencies."""
        return self._words[_LATENCY_NS] / 1e9

    def close(self) -> None:
        """Unmap."""
        self.grips.release()
        self._words.release()
        self._view.release()
        self._map.close()
