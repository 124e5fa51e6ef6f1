"""Starts a worker process. Standard library only: it runs before anything slow is imported.

An agent that starts has imports and files to read; the engine's library takes as long to load. Both
go on at once when the first worker is started before the agent knows what it will be for.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import NamedTuple


class Started(NamedTuple):
    """A process, our end of its socket, and where it is read what it writes to stderr."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    said: int  # a descriptor that does not block


_ahead: list[Started] = []


def start() -> Started:
    """A new worker process; it runs the agent's own code from the same environment.

    Raises:
        OSError: no process or socket can be made.
    """
    said, says = _pipe()
    try:
        return _start(said, says)
    except OSError:
        os.close(said)
        raise
    finally:
        os.close(says)


def _pipe() -> tuple[int, int]:
    """Neither end blocks: a worker that nobody listens to loses lines, and goes on."""
    said, says = os.pipe()
    os.set_blocking(said, False)
    os.set_blocking(says, False)
    return said, says


def _start(said: int, says: int) -> Started:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgekit_runtime.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=says,
            )
        except OSError:
            ours.close()
            raise
    return Started(process, ours, said)


def start_ahead() -> None:
    """Start one for whoever calls `take` first."""
    try:
        _ahead.append(start())
    except OSError:
        return  # whoever needs it starts it, and can say so


def take() -> Started:
    """The one started ahead, or a new one. Raises `OSError`."""
    return _ahead.pop() if _ahead else start()


def discard() -> None:
    """Nobody needs what was started ahead: it ends when its socket closes."""
    while _ahead:
        started = _ahead.pop()
        started.channel.close()
        started.process.wait()
        os.close(started.said)
