"""Unix sockets between processes of one user: who is at the other end, and short names."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_PEER = struct.Struct("3i")  # struct ucred (unix(7)): pid, uid, gid


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user id of the other end, as the kernel knows them. Raises `OSError`."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(raw)
    return pid, uid


def trusted(uid: int) -> bool:
    """Whether ``uid`` is our own user, or root."""
    return uid in (os.geteuid(), 0)


class Shortened:
    """A short name for a folder while it is open: a socket's path has 107 bytes at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1

    def __enter__(self) -> Path:
        """Raises `OSError` when there is no such folder."""
        self._descriptor = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return Path(f"/proc/self/fd/{self._descriptor}")

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
