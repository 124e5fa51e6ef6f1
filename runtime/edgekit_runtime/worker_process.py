"""A worker as a process on this device: started, asked how it ended, ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import NamedTuple, NoReturn

import msgspec

from edgekit.contracts.errors import ResourceError
from edgekit_runtime import quiet as idle
from edgekit_runtime import supervision
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
    if not quiet or not idle.possible():
        return _started(lambda ends: _spawn("edgekit_runtime.worker", ends))
    started = _started(lambda ends: _spawn("edgekit_runtime.quiet_worker", ends))
    idle.hush(started.pid)
    return started


def fork(main: Callable[[int], NoReturn]) -> WorkerProcess:
    """A fork of this process that does ``main`` with its socket, and nothing else.

    It is spared the start of a Python and what is imported already. Only for a process that has no
    other thread: what those held would stay held in the fork.

    Raises:
        ResourceError: no process or socket can be made.
    """

    def begin(ends: _Ends) -> int:
        pid = os.fork()
        if not pid:
            _become(main, ends)
        return pid

    return _started(begin)


class _Ends(NamedTuple):
    """Of a worker's socket and of its stderr; descriptors."""

    ours: int
    theirs: int
    said: int
    says: int


def _started(begin: Callable[[_Ends], int]) -> WorkerProcess:
    try:
        said, says = pipe()
        try:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                pid = begin(_Ends(ours.fileno(), theirs.fileno(), said, says))
                return WorkerProcess(pid, ours.detach(), said)
        except OSError:
            os.close(said)
            raise
        finally:
            os.close(says)
    except OSError as exc:
        raise ResourceError(f"cannot start a worker process: {exc.strerror}") from exc


def pipe() -> tuple[int, int]:
    """Neither end blocks: a worker that nobody listens to loses lines, and goes on.

    Raises:
        OSError: too many are open.
    """
    said, says = os.pipe()
    os.set_blocking(said, False)
    os.set_blocking(says, False)
    return said, says


def _spawn(module: str, ends: _Ends) -> int:
    command = [sys.executable, "-m", module, str(_CHANNEL)]
    # Nothing is inherited but what is copied here: a child that another thread starts at the same
    # time must not hold this worker's socket open.
    actions = [
        (os.POSIX_SPAWN_OPEN, _STDIN, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, ends.says, _STDERR),
        (os.POSIX_SPAWN_DUP2, ends.theirs, _CHANNEL),
    ]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)


def _become(main: Callable[[int], NoReturn], ends: _Ends) -> NoReturn:
    try:
        os.close(ends.ours)  # or the end of the agent would not be noticed
        os.close(ends.said)
        os.dup2(os.open(os.devnull, os.O_RDONLY), _STDIN)
        os.dup2(ends.says, _STDERR)
        main(ends.theirs)
    except BaseException:  # noqa: BLE001 - nothing may run on into the agent's own code
        import traceback  # noqa: PLC0415 - seldom needed, and not while a device starts

        traceback.print_exc()
    finally:
        os._exit(1)


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
