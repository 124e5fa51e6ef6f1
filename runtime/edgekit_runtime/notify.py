"""Tells the service manager that the agent is ready and alive (sd_notify(3)), without a library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

READY = b"READY=1"
WATCHDOG = b"WATCHDOG=1"
STOPPING = b"STOPPING=1"
REPORTED = b"EDGEKIT=reported"  # to our own supervisor: this runtime works


class Notifier:
    """Does nothing where no service manager asks for it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self.interval_s = _interval_s(environ)

    def send(self, state: bytes) -> None:
        """Send ``state``; a manager that does not listen must not stop inference."""
        if self._socket is None:
            return
        try:
            self._socket.sendto(state, self._address)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


def _interval_s(environ: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life: half of what the manager allows; None without one."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or int(text) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(text) / 2e6
