"""What workers write to stderr: line by line into the agent's log, and never a reason to wait.

The pipe between them does not block at either end. An agent that does not read for a while loses
lines, and a worker that writes more than anybody could read loses them, too; how many is said.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from time import monotonic

READ_BYTES = 65536  # a pipe's room
READS_MAX = 4  # at a time: the thread that reads has other things to do
LINES_MAX = 200  # a worker's in PERIOD_S; lower cuts tracebacks, higher lets one flush the log
PERIOD_S = 10.0
LINE_BYTES_MAX = 2000
RECENT_S = 5.0  # what was said before has nothing to do with the end
FATAL = "Fatal Python error: "  # faulthandler's first line; its last ones list modules
_DEBUG, _INFO, _WARNING, _ERROR, _CRITICAL = 10, 20, 30, 40, 50  # as `logging` counts
_LEVELS = {"D": _DEBUG, "I": _INFO, "W": _WARNING, "E": _ERROR}
_LOGGED = re.compile(r"([DIWEC]) worker: (.*)")


class Lossy(io.TextIOBase):
    """``sys.stderr`` of a worker: what the pipe does not take at once is lost."""

    def write(self, text: str) -> int:
        """Write what fits."""
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        """For faulthandler, which writes by itself."""
        return 2

    def writable(self) -> bool:
        """Always."""
        return True


class Said:
    """The agent's end of one worker's stderr. Thread-safe."""

    def __init__(self, descriptor: int, tag: str) -> None:
        """Read ``descriptor``, which must not block and is ours from now on."""
        self.tag = tag
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()
        self._rest = b""
        self._since = monotonic()
        self._lines = self._dropped = 0
        self._words, self._fatal, self._said_at = "", False, 0.0

    def pump(self) -> None:
        """Log what has been said since."""
        with self._lock:
            for _ in range(READS_MAX):
                if self._descriptor is None:
                    return
                try:
                    data = os.read(self._descriptor, READ_BYTES)
                except OSError:  # nothing there now
                    break
                if not data:
                    break
                self._take(data)
            self._turn()

    def words(self) -> str:
        """What it said last, shortly before now; of a crash the line that names it."""
        self.pump()
        with self._lock:
            if self._rest:
                self._line(self._rest)
                self._rest = b""
            return self._words if monotonic() - self._said_at < RECENT_S else ""

    def close(self) -> None:
        """It has ended: log the rest."""
        self.words()
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            self._tell_dropped()

    def _take(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        while len(rest) > LINE_BYTES_MAX:
            lines.append(rest[:LINE_BYTES_MAX])
            rest = rest[LINE_BYTES_MAX:]
        self._rest = rest
        for line in lines:
            self._line(line)

    def _line(self, raw: bytes) -> None:
        text = raw[:LINE_BYTES_MAX].decode(errors="replace").rstrip()
        if not text:
            return
        self._said_at = monotonic()
        if not self._fatal:
            self._words, self._fatal = text[:300], text.startswith(FATAL)
        self._turn()
        if self._lines >= LINES_MAX:
            self._dropped += 1
            return
        self._lines += 1
        found = _LOGGED.fullmatch(text)
        level = _LEVELS.get(found[1], _CRITICAL) if found else _WARNING
        _log(level, f"{self.tag}: {found[2] if found else text}")

    def _turn(self) -> None:
        now = monotonic()
        if now - self._since >= PERIOD_S:
            self._tell_dropped()
            self._since, self._lines = now, 0

    def _tell_dropped(self) -> None:
        if self._dropped:
            _log(_WARNING, f"{self.tag}: {self._dropped} more lines were dropped")
            self._dropped = 0


def _log(level: int, text: str) -> None:
    import logging  # noqa: PLC0415 - 4 ms of a start, and a worker that starts says nothing

    logging.getLogger("edgekit_runtime.worker").log(level, "%s", text)
