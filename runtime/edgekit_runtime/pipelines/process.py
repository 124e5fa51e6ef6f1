"""The process of one pipeline: takes its order from the agent, runs, and ends with the agent.

On the socket: first the agent's `Order`, one line; then lines of log from here; ``stop`` from the
agent asks for an end in order. A socket that closes is an agent that is gone: the process ends at
once, what it had in hand is counted by the next one and given again by sources that can.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import msgspec

from edgekit.contracts.errors import BugError, EdgekitError
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import parts
from edgekit_runtime.pipelines.counts import Counts
from edgekit_runtime.pipelines.endpoint import Endpoint
from edgekit_runtime.pipelines.intake import Intake
from edgekit_runtime.pipelines.orders import ORDER_BYTES_MAX, STOP, Note, Order
from edgekit_runtime.pipelines.run import Runner
from edgekit_runtime.sources.admission import Admission, Source
from edgekit_runtime.stderr import Lossy

GRACE_S = 3.0  # sinks have so long to deliver what waits; less than the agent's own patience
NOTES_MAX = 20  # lines of log at once
NOTES_PER_S = 5.0
Heard = Callable[[], bytes]
log = logging.getLogger("edgekit_runtime.pipelines")


class NoteHandler(logging.Handler):
    """Sends the log to the agent; bounded, and never waits for it."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self._channel = channel
        self._left, self._at = float(NOTES_MAX), monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        now = monotonic()
        self._left = min(float(NOTES_MAX), self._left + (now - self._at) * NOTES_PER_S)
        self._at = now
        if self._left < 1.0 and record.levelno < logging.CRITICAL:
            return
        self._left -= 1.0
        note = Note(level=record.levelname, text=self.format(record)[:2000])
        with contextlib.suppress(OSError):  # the agent is busy, or gone
            self._channel.send(msgspec.json.encode(note) + b"\n", socket.MSG_DONTWAIT)


class Process:
    """One pipeline, from its order to its end."""

    def __init__(self, order: Order) -> None:
        """Build everything; nothing runs yet.

        Raises:
            EdgekitError: something of it cannot work here.
        """
        spec = self._spec = order.spec
        disk = PosixDisk()
        self._stopping = threading.Event()
        parts.check_libraries(spec)
        self._counts = Counts(disk, Path(order.state_dir), spec)
        self._intake = Intake(spec.policy, spec.queue_size, spec.queue_bytes_max)
        door = Admission(spec, self._counts, self._intake, self._stopping)
        self._source: Source = parts.source(order, door)
        self._outlets = [
            parts.outlet(order, index, disk, self._counts) for index in range(len(spec.sinks))
        ]
        self._endpoint = Endpoint(order.socket, spec.model)
        self._runner = Runner(
            spec=spec,
            counts=self._counts,
            intake=self._intake,
            admission=door,
            endpoint=self._endpoint,
            outlets=self._outlets,
        )
        self._failure: Exception | None = None

    def run(self) -> None:
        """Until `stop`. Raises what ended its source."""
        for outlet in self._outlets:
            outlet.start()
        source = threading.Thread(target=self._read, name="source", daemon=True)
        source.start()
        try:
            self._runner.run()
            for item in self._intake.close():
                self._counts.drop("ended")
                item.settle(parts.RETURNED)
            for outlet in self._outlets:
                outlet.stop(GRACE_S)
            source.join(GRACE_S)
            for outlet in self._outlets:
                outlet.join(GRACE_S + 1.0)
            self._source.close()
        finally:
            self._endpoint.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End in order."""
        self._stopping.set()
        for outlet in self._outlets:
            outlet.release()

    def _read(self) -> None:
        try:
            self._source.run()
        except Exception as exc:  # noqa: BLE001 - handed to the main thread, which ends the process
            self._failure = exc
            self.stop()


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    # Ctrl-C and a service manager's stop reach the whole group; the agent says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stderr = Lossy()
    faulthandler.enable()
    _offer_to_the_oom_killer()
    channel = socket.socket(fileno=int(sys.argv[1]))
    reader = channel.makefile("rb")
    line = reader.readline(ORDER_BYTES_MAX)
    if not line:
        return
    logging.basicConfig(handlers=[NoteHandler(channel)], level=logging.INFO, format="%(message)s")
    code = _serve(msgspec.json.decode(line, type=Order), reader.readline)
    sys.stderr.flush()
    os._exit(code)  # a source may still stand in a library's call


def _serve(order: Order, heard: Heard) -> int:
    stop = threading.Event()
    box: list[Process] = []

    def listen() -> None:
        with contextlib.suppress(OSError):  # a reset: it is gone, too
            while line := heard():
                if line == STOP:
                    stop.set()
                    if box:
                        box[0].stop()
        os._exit(0)  # the agent is gone

    threading.Thread(target=listen, name="agent", daemon=True).start()
    try:
        box.append(Process(order))
        if stop.is_set():
            return 0
        box[0].run()
    except EdgekitError as exc:
        log.critical("%s%s", exc.message, f" ({exc.hint})" if exc.hint else "")
        return exc.exit_code
    except Exception as exc:
        log.critical("unexpected %s: %s", type(exc).__name__, exc, exc_info=True)
        return BugError.exit_code
    return 0


def _offer_to_the_oom_killer() -> None:
    """Where memory runs out this process goes, and not the agent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500\n", encoding="ascii")
