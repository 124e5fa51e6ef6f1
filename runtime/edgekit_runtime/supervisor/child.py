"""A started agent."""

from __future__ import annotations

import os
import time

from edgekit_runtime.supervisor.lean import end_with_parent, signal

TYPE_CHECKING = False  # importing typing costs the supervisor a tenth of its memory
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAIL_BYTES = 400  # of an agent's last words, for the reason
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Child:
    """A started agent."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.started = self.pinged = time.monotonic()
        self.ready = self.told_to_stop = self.never_reported = False
        self.reported_at: float | None = None
        self.killed_for = ""
        self.tail = b""
        self.stderr, theirs = os.pipe()
        os.set_blocking(self.stderr, False)
        parent = os.getpid()
        # A stop that comes now waits for the handlers of the new program, or is lost on ours.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, environ, theirs, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(theirs)

    def kill(self, reason: str) -> None:
        """End it and what it started, now."""
        self.killed_for = self.killed_for or reason
        self.signal_all(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """To the agent itself, which ends its workers in order."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def signal_all(self, number: int) -> None:
        """To the agent's whole process group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def listen(self) -> bool:
        """Pass its standard error on and remember the end of it; False when it is closed."""
        try:
            data = os.read(self.stderr, 65536)
        except BlockingIOError:
            return True
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        try:
            os.write(2, data)
        except OSError:
            return bool(data)
        return bool(data)

    def why(self, status: int) -> str:
        """How it ended, in words."""
        how = self.killed_for or _how(os.waitstatus_to_exitcode(status))
        if self.reported_at is None and not self.killed_for:
            how += " before it reported"
        words = self.tail.decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {words[-1].strip()}" if words else how


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    from signal import Signals  # noqa: PLC0415 - names alone, for what seldom happens

    return f"ended by {Signals(-code).name}"


def _become(command: Sequence[str], environ: Mapping[str, str], stderr: int, parent: int) -> None:
    """In the child: never returns. It ends with its parent, and leads a group of its own."""
    try:
        os.setsid()
        end_with_parent()
        if os.getppid() == parent:
            os.dup2(stderr, 2)
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.execve(command[0], list(command), dict(environ))
    except OSError as exc:
        os.write(stderr, f"cannot be started: {exc}\n".encode())
    finally:
        os._exit(127)
