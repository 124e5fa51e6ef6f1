"""What connects an agent with a worker on this device: a socket, and a pipe for its stderr."""

from __future__ import annotations

import os
from typing import NamedTuple

from edgekit_runtime.supervisor.lean import socket


class Ends(NamedTuple):
    """Of a worker's socket and of its stderr; descriptors."""

    ours: int
    theirs: int
    said: int
    says: int

    def keep_ours(self) -> None:
        """Close what the worker has by now."""
        os.close(self.theirs)
        os.close(self.says)

    def keep_theirs(self) -> None:
        """Close what the agent has: its end would not be noticed otherwise."""
        os.close(self.ours)
        os.close(self.said)


def opened() -> Ends:
    """New ones.

    Raises:
        OSError: too many are open.
    """
    said, says = pipe()
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        os.close(said)
        os.close(says)
        raise
    return Ends(ours.detach(), theirs.detach(), said, says)


def pipe() -> tuple[int, int]:
    """Neither end blocks: a worker that nobody listens to loses lines, and goes on.

    Raises:
        OSError: too many are open.
    """
    said, says = os.pipe()
    os.set_blocking(said, False)
    os.set_blocking(says, False)
    return said, says
