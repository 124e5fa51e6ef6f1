"""Real processes of the demo: started, killed without warning, started again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgekit.contracts.errors import UnavailableError

POLL_S = 0.05
# Below the ports that Linux gives to outgoing connections (ip_local_port_range): one of those could
# take a port before the server that it was found for listens, or while a killed one is away.
_PORTS = range(20000, 32768)
_PORTS_TRIED = 100


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago, and that no client gets.

    Raises:
        UnavailableError: none was found.
    """
    for port in random.sample(_PORTS, _PORTS_TRIED):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise UnavailableError(
        f"no free port between {_PORTS[0]} and {_PORTS[-1]} on 127.0.0.1",
        hint="stop servers that listen there",
    )


def wait_until(what: str, ready: Callable[[], bool], timeout_s: float) -> float:
    """Poll ``ready``; returns the seconds it took.

    Raises:
        UnavailableError: not within ``timeout_s``.
    """
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > timeout_s:
            raise UnavailableError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)
    return time.monotonic() - began


class Daemon:
    """One process of the fleet, in its own session, with its log in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self.command, self.log = name, list(command), log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start (again); the log is appended to."""
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    @property
    def pid(self) -> int:
        """Process id of the current incarnation."""
        if self.process is None:
            raise UnavailableError(f"{self.name} was not started")
        return self.process.pid

    @property
    def device(self) -> str | None:
        """The device whose agent this is, or None."""
        kind, _, device = self.name.partition(" ")
        return device if kind == "agent" else None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def ensure_alive(self) -> None:
        """Raises `UnavailableError` with the end of the log when the process has ended."""
        if not self.alive:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise UnavailableError(
                f"{self.name} ended unexpectedly: {' | '.join(tail) or 'no output'}",
                hint=f"see {self.log}",
            )

    def freeze(self) -> None:
        """SIGSTOP: it holds its sockets but does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> int:
        """SIGKILL; returns the pid that died, gone from ``/proc``."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        return pid

    def stop(self, timeout_s: float = 10.0) -> int | None:
        """SIGTERM, then SIGKILL; returns the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


class Daemons:
    """All processes of the demo; leaving the block stops whatever still runs, newest first."""

    def __init__(self) -> None:
        self._all: list[Daemon] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Daemon]:
        return iter(self._all)

    def add(self, daemon: Daemon) -> Daemon:
        """Start ``daemon`` and remember to stop it."""
        self._all.append(daemon)
        daemon.start()
        return daemon

    def release(self, daemon: Daemon) -> None:
        """Someone else stops ``daemon`` from now on; its end is expected."""
        self._all.remove(daemon)

    def stop(self) -> None:
        """Stop all, newest first; all get their signal before the first is waited for."""
        for daemon in reversed(self._all):
            if daemon.alive:
                with contextlib.suppress(ProcessLookupError):
                    daemon.thaw()
                    os.kill(daemon.pid, signal.SIGTERM)
        for daemon in reversed(self._all):
            daemon.stop()


def resident_mb(pid: int) -> float:
    """Resident set of a process and all it started, in MB, from ``/proc``."""
    own = _own_mb(pid)
    if own is None:
        raise UnavailableError(f"/proc/{pid}/status has no VmRSS")
    return own + sum(_family_mb(child) for child in _children(pid))


def _family_mb(pid: int) -> float:
    """Like `resident_mb`; a child may have ended, and then holds nothing."""
    try:
        return (_own_mb(pid) or 0.0) + sum(_family_mb(child) for child in _children(pid))
    except OSError:
        return 0.0


def _own_mb(pid: int) -> float | None:
    text = Path(f"/proc/{pid}/status").read_text()
    line = next((line for line in text.splitlines() if line.startswith("VmRSS:")), None)
    return None if line is None else int(line.split()[1]) / 1024.0


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}").glob("task/*/children")
    return {int(word) for task in tasks for word in task.read_text().split()}
