"""One agent per state folder: an advisory lock that the kernel drops with the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edgekit.contracts.errors import UnavailableError, translate_os_errors

NAME = "agent.lock"


class StateLock:
    """Held from construction until `release` or the end of the process."""

    def __init__(self, state_dir: Path) -> None:
        """Take the lock and leave our pid in it.

        Raises:
            UnavailableError: another agent holds it.
        """
        path = state_dir / NAME
        with translate_os_errors("open", path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            owner = os.read(self._handle, 32).decode("ascii", "replace").strip()
            os.close(self._handle)
            raise UnavailableError(
                f"{state_dir}: another agent (pid {owner or 'unknown'}) uses this state folder",
                hint="stop it, or give this one another [device] state_dir",
            ) from exc
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the state folder back."""
        os.close(self._handle)


def holder(state_dir: Path) -> tuple[int | None, bool]:
    """(pid last written, whether that agent is alive) without disturbing it."""
    path = state_dir / NAME
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None, False
    try:
        text = os.read(handle, 32).decode("ascii", "replace").strip()
        pid = int(text) if text.isdigit() else None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return pid, True
        return pid, False
    finally:
        os.close(handle)
