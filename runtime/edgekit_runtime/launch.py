"""How a worker is started and ended, whatever it runs in: a process here, or a container."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Protocol

from edgekit.contracts.messages import Policy, SlotRef
from edgekit_runtime.supervision import Ending

WORKER_NAME = "edgekit-worker"  # of its process, for ps and the like


class WorkerHandle(Protocol):
    """A started worker on a connected Unix stream socket. Ends when that socket is closed."""

    channel: socket.socket
    pid: int  # as this process sees it; 0: it does not

    @property
    def leaving(self) -> bool:
        """Whether it was hung up on."""

    def say_as(self, tag: str) -> None:
        """Call it ``tag`` in the log from now on."""

    def ending(self) -> Ending | None:
        """How it ended; None while it runs. Never waits."""

    def kill(self) -> None:
        """End it now. Never waits."""

    def hang_up(self) -> None:
        """Close our end: it finishes nothing more and exits."""

    def reap(self, *, now: float) -> bool:
        """Whether it is gone; killed when it does not go by itself."""

    def wait(self, timeout_s: float = ...) -> Ending:
        """Block until it has ended; kills it when that takes longer."""


class Launcher(Protocol):
    """Starts workers for slots that are images."""

    def start(self, model: str, ref: SlotRef, policy: Policy) -> WorkerHandle:
        """A worker in a container of ``ref.image``, which has connected.

        Raises:
            EngineAwayError: the engine does not answer.
            WorkerEndedError: it ended before it connected, or took too long.
            BadInputError: the image is gone or cannot run here.
            ResourceError: no space.
        """

    @property
    def root(self) -> str:
        """Where its bundle lies, as the worker sees it."""


def channel(argument: str) -> socket.socket:
    """The worker's end: an inherited descriptor's number, or the path of a socket to connect to.

    Raises:
        OSError: nobody listens there.
    """
    if argument.isdigit():
        return socket.socket(fileno=int(argument))
    found = socket.socket(socket.AF_UNIX)
    found.connect(str(Path(argument)))
    return found
