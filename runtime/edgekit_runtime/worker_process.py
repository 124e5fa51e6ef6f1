"""A worker as a process on this device: started, asked how it ended, ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from time import monotonic, sleep

import msgspec

from edgekit.contracts.errors import ResourceError
from edgekit_runtime import ends, supervision
from edgekit_runtime import quiet as quieting
from edgekit_runtime.ends import Ends
from edgekit_runtime.stderr import Said
from edgekit_runtime.supervision import Ending

GRACE_S = 5.0  # between hanging up on a worker and killing it
LOOK_S = 0.001, 0.05  # between looks at a process that is to end: at first, and at most
_STDIN, _STDERR, _CHANNEL = 0, 2, 3  # descriptors of a worker that is a program of its own


class WorkerProcess:
    """A started worker, `edgekit_runtime.launch.WorkerHandle`. Ends when the socket is closed."""

    def __init__(self, pid: int, channel: int, said: int) -> None:
        """Of a child of ours, our end of its socket and of its stderr (which does not block)."""
        self.pid = pid
        self.channel = socket.socket(fileno=channel)
        self._process = _Process(pid)
        self._said = Said(said, f"worker {pid}")
        self._hung_up_at: float | None = None

    @property
    def leaving(self) -> bool:
        """See `WorkerHandle.leaving`."""
        return self._hung_up_at is not None

    def say_as(self, tag: str) -> None:
        """See `WorkerHandle.say_as`."""
        self._said.tag = tag

    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        return None if code is None else self._describe(code)

    def _describe(self, code: int) -> Ending:
        # All it ever wrote lies in the pipe now: there is nothing to wait for.
        return msgspec.structs.replace(supervision.describe_exit(code), words=self._said.words())

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def hang_up(self) -> None:
        """Close our end: it finishes nothing more and exits."""
        self._hung_up_at = self._hung_up_at or monotonic()
        self.channel.close()

    def reap(self, *, now: float) -> bool:
        """Whether it is gone; killed when it does not go by itself."""
        if self._hung_up_at is not None and now - self._hung_up_at > GRACE_S:
            self._process.kill()
        gone = self._process.poll() is not None
        if gone:
            self._said.close()
        else:
            self._said.pump()
        return gone

    def wait(self, timeout_s: float = GRACE_S) -> Ending:
        """Block until it has ended; kills it when that takes longer."""
        end, pause = monotonic() + timeout_s, LOOK_S[0]
        while (code := self._process.poll()) is None:
            if monotonic() >= end:
                self._process.kill()
            sleep(pause)
            pause = min(2 * pause, LOOK_S[1])
        return self._describe(code)


def start(*, quiet: bool) -> WorkerProcess:
    """A program of its own, which runs this agent's code from the same environment.

    Args:
        quiet: it gives way to everything else while it loads, see `edgekit_runtime.quiet`.

    Raises:
        ResourceError: no process or socket can be made.
    """
    if not quiet or not quieting.possible():
        return _started("edgekit_runtime.worker")
    started = _started("edgekit_runtime.quiet_worker")
    quieting.hush(started.pid)
    return started


def _started(module: str) -> WorkerProcess:
    try:
        made = ends.opened()
        try:
            pid = _spawn(module, made)
        except OSError:
            made.keep_theirs()
            raise
        finally:
            made.keep_ours()
    except OSError as exc:
        raise ResourceError(f"cannot start a worker process: {exc.strerror}") from exc
    return WorkerProcess(pid, made.ours, made.said)


def _spawn(module: str, made: Ends) -> int:
    command = [sys.executable, "-m", module, str(_CHANNEL)]
    # Nothing is inherited but what is copied here: a child that another thread starts at the same
    # time must not hold this worker's socket open.
    actions = [
        (os.POSIX_SPAWN_OPEN, _STDIN, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, made.says, _STDERR),
        (os.POSIX_SPAWN_DUP2, made.theirs, _CHANNEL),
    ]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)


class _Process:
    """A child of ours. Thread-safe. `subprocess` would take 4 ms while a device starts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._code: int | None = None

    def poll(self) -> int | None:
        """Exit code, or the signal that ended it as a negative number; None while it runs."""
        with self._lock:
            if self._code is None:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
            return self._code

    def kill(self) -> None:
        """End it now; nothing when it has ended."""
        with self._lock:  # the number is nobody else's as long as nobody has waited for it
            if self._code is None:
                os.kill(self._pid, signal.SIGKILL)
