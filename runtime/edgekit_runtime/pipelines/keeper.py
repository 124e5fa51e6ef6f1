"""The agent's side: starts each pipeline's process, starts it again when it ends, and stops it.

A thread of its own, so that neither the control thread nor the front ever waits for a pipeline.
What happened is taken from here by the control thread (`events`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import msgspec

from edgekit.contracts.health import PipelineReport
from edgekit.contracts.messages import DeviceEvent
from edgekit_runtime import supervision
from edgekit_runtime.pipelines import counts
from edgekit_runtime.pipelines.counts import Figures
from edgekit_runtime.pipelines.orders import STOP, Note, Order
from edgekit_runtime.pipelines.spec import PipelineSpec
from edgekit_runtime.ports import Clock, Disk
from edgekit_runtime.stderr import Said
from edgekit_runtime.supervision import Crashes, Ending, EndKind

WATCH_S = 0.2
NOTES_BYTES_MAX = 256 * 1024  # unread from one process; what it says beyond is lost
EVENTS_MAX = 64  # waiting for the control thread
TOLD_MAX = 3  # ends of one pipeline within ten minutes that become audit records
log = logging.getLogger(__name__)


class _Child:
    """One started process."""

    def __init__(self, order: Order) -> None:
        """Start it. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        said, says = os.pipe()
        os.set_blocking(said, False)
        os.set_blocking(says, False)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgekit_runtime.sources", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=says,
            )
        except OSError:
            ours.close()
            os.close(said)
            raise
        finally:
            theirs.close()
            os.close(says)
        self.said = Said(said, f"pipeline {order.spec.name}")
        self.channel = ours
        self.last_words = ""
        self._heard = b""
        with contextlib.suppress(OSError):  # that it is gone is noticed by polling
            ours.sendall(msgspec.json.encode(order) + b"\n")
        ours.setblocking(False)

    def stop(self) -> None:
        """Ask it to end in order."""
        with contextlib.suppress(OSError):
            self.channel.sendall(STOP)

    def notes(self) -> list[Note]:
        """What it has said since; what it wrote to stderr goes to the log."""
        self.said.pump()
        with contextlib.suppress(OSError):  # nothing there, or it is gone
            while len(self._heard) < NOTES_BYTES_MAX:
                data = self.channel.recv(65536)
                if not data:
                    break
                self._heard += data
        *lines, rest = self._heard.split(b"\n")
        self._heard = rest if len(rest) < NOTES_BYTES_MAX else b""
        found = []
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                found.append(msgspec.json.decode(line, type=Note))
        return found

    def close(self) -> None:
        """Hang up: it ends at once."""
        self.channel.close()
        self.said.close()


class _Kept:
    """One pipeline and its process. Belongs to the keeper's thread."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.child: _Child | None = None
        self.crashes = Crashes()

    @property
    def name(self) -> str:
        return self.order.spec.name

    def turn(self, now: float, *, stopping: bool) -> str | None:
        """Look after it; why its process ended, when it has."""
        child = self.child
        if child is None:
            if not stopping and now >= self.crashes.start_at:
                return self._start(now)
            return None
        code = child.process.poll()
        for note in child.notes():
            level = logging.getLevelName(note.level)
            log.log(level if isinstance(level, int) else logging.WARNING,
                    "pipeline %s: %s", self.name, note.text)  # fmt: skip
            if note.level == "CRITICAL":
                child.last_words = note.text.partition("\n")[0]
        if code is None:
            return None
        words = child.said.words()
        child.close()
        self.child = None
        if stopping and code == 0:
            return None
        if child.last_words:
            reason = f"its process ended: {child.last_words}"
        else:
            ending = supervision.describe_exit(code, who="its process")
            reason = msgspec.structs.replace(ending, words=words).story
        self.crashes.add(Ending(EndKind.CRASH, reason), now)
        return reason

    def _start(self, now: float) -> str | None:
        try:
            self.child = _Child(self.order)
        except OSError as exc:
            reason = f"its process cannot be started: {exc.strerror}"
            self.crashes.add(Ending(EndKind.CRASH, reason), now)
            return reason
        return None


class Keeper:
    """All pipelines of one agent. `start`, `stop`, `idle`, `close` belong to one thread."""

    def __init__(
        self,
        specs: Sequence[PipelineSpec],
        *,
        device: str,
        socket_path: Path,
        state_dir: Path,
        disk: Disk,
        clock: Clock,
    ) -> None:
        self._specs = specs
        self._state_dir, self._disk, self._clock = state_dir, disk, clock
        where = str(socket_path.absolute()), str(state_dir.absolute())
        self._kept = [
            _Kept(Order(device=device, socket=where[0], state_dir=where[1], spec=spec))
            for spec in specs
        ]
        self._events: deque[DeviceEvent] = deque(maxlen=EVENTS_MAX)
        self._stopping = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pipelines", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask every process to end in order; `idle` says when they have."""
        self._stopping.set()

    @property
    def idle(self) -> bool:
        """Whether no process runs."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """End what still runs."""
        self._stopping.set()
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def events(self) -> list[DeviceEvent]:
        """What has happened since; for the control thread."""
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found

    def figures(self) -> dict[str, Figures]:
        """What each pipeline has done. Any thread."""
        found = {s.name: counts.read(self._disk, self._state_dir, s) for s in self._specs}
        return {name: each for name, each in found.items() if each is not None}

    def reports(self) -> dict[str, PipelineReport]:
        """The same for the manager; a pipeline that never ran is there, too."""
        figures = self.figures()
        return {
            spec.name: figures[spec.name].report()
            if spec.name in figures
            else PipelineReport(state="stopped")
            for spec in self._specs
        }

    # --- the keeper's thread -------------------------------------------------------------------

    def _run(self) -> None:
        told_to_stop = False
        while True:
            stopping = self._stopping.is_set()
            if stopping and not told_to_stop:
                told_to_stop = True
                for kept in self._kept:
                    if kept.child is not None:
                        kept.child.stop()
            for kept in self._kept:
                reason = kept.turn(monotonic(), stopping=stopping)
                if reason is not None:
                    self._tell(kept, reason)
            running = [kept.child for kept in self._kept if kept.child is not None]
            if stopping and (not running or self._closing.is_set()):
                break
            self._stopping.wait(WATCH_S) if not stopping else self._closing.wait(WATCH_S / 4)
        for child in running:
            child.close()
            child.process.kill()
            child.process.wait()

    def _tell(self, kept: _Kept, reason: str) -> None:
        detail = f"pipeline {kept.name}: {reason}"
        log.warning("%s", detail)
        if kept.crashes.count(monotonic()) <= TOLD_MAX:  # a loop is seen in `starts`
            at = self._clock.wall()
            self._events.append(DeviceEvent(kind="pipeline_ended", detail=detail[:500], at=at))
