"""What a pipeline has done: one mapped page in the state folder, right through any SIGKILL.

Only the pipeline's process writes; each word is one aligned 8-byte store. Agent, ``status`` and
``doctor`` read the file. For ever, and after each start of the process::

    received == inferred + refused + dropped + in hand
    inferred == delivered + failed + dropped + in hand     (for each sink)

What a killed process had in hand is counted as dropped (``ended``) by the next one; a source that
gives it again has it received again. A power cut may cost the newest counts, as with the rings.
The page begins anew when the pipeline's table changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import threading
from enum import IntEnum
from pathlib import Path
from time import monotonic, sleep

import msgspec

from edgekit.contracts.errors import UnavailableError, translate_os_errors
from edgekit.contracts.health import PipelineReport
from edgekit_runtime.pipelines.spec import SINKS_MAX, PipelineSpec
from edgekit_runtime.ports import Disk

FOLDER = "pipelines"
REFUSED = ("decode", "contract", "too_large", "unreadable", "engine", "internal")
DROPPED = ("queue_full", "rate", "sampled", "stale", "ended")
SINK_WORDS = ("delivered", "failed", "queue_full", "ended", "retries")
_MAGIC = b"EKPIPE01"  # a change of the words needs another
_HEADER_BYTES = 64
_WORDS = ("starts", "state", "received", "inferred", "waits", "in_decoder", "suspect", "deaths")
_REFUSED_AT = 16
_DROPPED_AT = 32
_SINKS_AT = 48
_SINK_STRIDE = 8
PAGE_BYTES = _HEADER_BYTES + 8 * (_SINKS_AT + _SINK_STRIDE * SINKS_MAX)
DEATHS_MAX = 3  # of the process in the decoder, on one item: then that item is refused
LOCK_S_MAX = 10.0  # for a killed agent's process to be gone


class State(IntEnum):
    """What the process is doing."""

    STARTING = 0
    RUNNING = 1
    WAITING = 2  # for the model, or for the agent
    AWAY = 3  # its source: broker, camera, folder
    ENDED = 4  # a video file is at its end


class SinkFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One sink, by its kind and place in the table."""

    name: str
    delivered: int
    failed: int
    dropped: dict[str, int]
    retries: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline since its table was last changed. Words are read one after the other."""

    model: str
    alive: bool
    state: str
    starts: int
    received: int
    inferred: int
    refused: dict[str, int]
    dropped: dict[str, int]
    waits: int  # times an item had to wait for the model
    sinks: tuple[SinkFigures, ...]

    @property
    def in_hand(self) -> int:
        """Received and not decided yet; of a dead process: what the next one counts as dropped."""
        settled = self.inferred + sum(self.refused.values()) + sum(self.dropped.values())
        return max(0, self.received - settled)

    def report(self) -> PipelineReport:
        """What the manager is told."""
        return PipelineReport(
            state=self.state,
            starts=self.starts,
            received=self.received,
            inferred=self.inferred,
            refused=sum(self.refused.values()),
            dropped=sum(self.dropped.values()),
            delivered=sum(sink.delivered for sink in self.sinks),
            failed=sum(sink.failed + sum(sink.dropped.values()) for sink in self.sinks),
        )


class Counts:
    """The writer's side. Thread-safe; one process at a time."""

    def __init__(self, disk: Disk, state_dir: Path, spec: PipelineSpec) -> None:
        """Take over what the process before has left.

        Raises:
            UnavailableError: another process still serves this pipeline.
            EdgekitError: the state folder cannot be written.
        """
        folder = state_dir / FOLDER
        disk.make_dir(folder)
        path = folder / f"{spec.name}.counts"
        self._lock_handle = _locked(folder / f"{spec.name}.lock", spec.name)
        header = _header(spec)
        if disk.read(path, bytes_max=len(header)) != header or disk.size(path) != PAGE_BYTES:
            disk.replace(path, header.ljust(PAGE_BYTES, b"\0"))
        with translate_os_errors("map", path), path.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), PAGE_BYTES)
        self._view = memoryview(self._map)
        self._words = self._view[_HEADER_BYTES:].cast("Q")
        self._guard = threading.Lock()
        self._sinks = len(spec.sinks)
        self._take_over()

    def add(self, name: str, count: int = 1) -> None:
        """Count one of `_WORDS`."""
        with self._guard:
            self._words[_WORDS.index(name)] += count

    def refuse(self, reason: str) -> None:
        """An item cannot be used, and never will be."""
        with self._guard:
            self._words[_REFUSED_AT + REFUSED.index(reason)] += 1

    def drop(self, reason: str) -> None:
        """An item was given up."""
        with self._guard:
            self._words[_DROPPED_AT + DROPPED.index(reason)] += 1

    def sink(self, index: int, name: str, count: int = 1) -> None:
        """Count one of `SINK_WORDS` for a sink."""
        with self._guard:
            self._words[_sink_word(index, name)] += count

    def may_decode(self, item: int) -> bool:
        """An item goes to a decoder, which may end the process; False: it did so too often.

        ``item`` is a hash of its id, which is the same when the source gives it again.
        """
        suspected = item == self._words[_WORDS.index("suspect")]
        if suspected and self._words[_WORDS.index("deaths")] >= DEATHS_MAX:
            return False
        self._words[_WORDS.index("in_decoder")] = item
        return True

    def decoded(self) -> None:
        """The decoder has come back."""
        self._words[_WORDS.index("in_decoder")] = 0

    @property
    def state(self) -> State:
        """What the process is doing."""
        return State(self._words[_WORDS.index("state")])

    @state.setter
    def state(self, state: State) -> None:
        self._words[_WORDS.index("state")] = state

    def close(self) -> None:
        """Unmap, and let the next process have it."""
        self._words.release()
        self._view.release()
        self._map.close()
        os.close(self._lock_handle)

    def _take_over(self) -> None:
        words = self._words
        self.add("starts")
        self.state = State.STARTING
        word = _WORDS.index
        killer = words[word("in_decoder")]
        if killer:
            known = killer == words[word("suspect")]
            words[word("deaths")] = words[word("deaths")] + 1 if known else 1
            words[word("suspect")] = killer
            words[word("in_decoder")] = 0
        settled = sum(words[_REFUSED_AT : _REFUSED_AT + len(REFUSED)])
        settled += sum(words[_DROPPED_AT : _DROPPED_AT + len(DROPPED)])
        lost = words[word("received")] - words[word("inferred")] - settled
        # Negative only after a power cut that kept some words and not others.
        words[_DROPPED_AT + DROPPED.index("ended")] += max(0, lost)
        for index in range(self._sinks):
            told = sum(words[_sink_word(index, each)] for each in SINK_WORDS if each != "retries")
            words[_sink_word(index, "ended")] += max(0, words[word("inferred")] - told)


def read(disk: Disk, state_dir: Path, spec: PipelineSpec) -> Figures | None:
    """The figures of ``spec``; None before its first start, or since its table was changed."""
    folder = state_dir / FOLDER
    page = disk.read(folder / f"{spec.name}.counts", bytes_max=PAGE_BYTES)
    header = _header(spec)
    if page is None or len(page) != PAGE_BYTES or not page.startswith(header):
        return None
    words = memoryview(page)[_HEADER_BYTES:].cast("Q")
    alive = _is_locked(folder / f"{spec.name}.lock")
    state = State(words[_WORDS.index("state")]) if alive else None
    return Figures(
        model=spec.model,
        alive=alive,
        state=state.name.lower() if state is not None else "stopped",
        starts=words[_WORDS.index("starts")],
        received=words[_WORDS.index("received")],
        inferred=words[_WORDS.index("inferred")],
        waits=words[_WORDS.index("waits")],
        refused={each: words[_REFUSED_AT + n] for n, each in enumerate(REFUSED)},
        dropped={each: words[_DROPPED_AT + n] for n, each in enumerate(DROPPED)},
        sinks=tuple(_sink_figures(words, spec, index) for index in range(len(spec.sinks))),
    )


def _sink_figures(words: memoryview, spec: PipelineSpec, index: int) -> SinkFigures:
    found = {each: words[_sink_word(index, each)] for each in SINK_WORDS}
    return SinkFigures(
        name=sink_name(spec, index),
        delivered=found["delivered"],
        failed=found["failed"],
        dropped={each: found[each] for each in ("queue_full", "ended")},
        retries=found["retries"],
    )


def sink_name(spec: PipelineSpec, index: int) -> str:
    """How a sink is called: ``0:file``."""
    return f"{index}:{spec.sinks[index].__struct_config__.tag}"


def _sink_word(index: int, name: str) -> int:
    return _SINKS_AT + _SINK_STRIDE * index + SINK_WORDS.index(name)


def _header(spec: PipelineSpec) -> bytes:
    return _MAGIC + hashlib.sha256(msgspec.json.encode(spec)).digest()


def _locked(path: Path, name: str) -> int:
    with translate_os_errors("open", path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = monotonic() + LOCK_S_MAX
    while not _try_lock(handle, fcntl.LOCK_EX):
        if monotonic() > end:
            os.close(handle)
            raise UnavailableError(f"pipeline {name!r}: another process serves it")
        sleep(0.05)
    return handle


def _try_lock(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)
