"""Applications that embed a model: their sockets, on the agent's side.

Sockets belong to the front's thread, decisions to the control thread (`edgekit_runtime.lending`):
frames pass through a queue in one direction and `Loop.post` in the other. Whoever connects must be
the agent's own user, or root. What comes in is bounded, and what is not understood ends the
connection, never the agent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgekit.contracts.errors import BugError, translate_os_errors
from edgekit_runtime import sockets, wire
from edgekit_runtime.loop import READ, WRITE, Loop
from edgekit_runtime.sockets import Shortened
from edgekit_runtime.wire import SESSIONS_SOCKET, Channel, Frame, FrameKind

BACKLOG = 16
log = logging.getLogger(__name__)


class Application:
    """One connection. `number` is never used again while the agent runs."""

    def __init__(self, number: int, pid: int, channel: Channel) -> None:
        self.number = number
        self.pid = pid
        self.channel = channel


class Applications:
    """Accepts them, reads and writes frames."""

    def __init__(
        self, loop: Loop, *, sessions_max: int, threads: int, woken: Callable[[], None]
    ) -> None:
        """Nobody is connected yet.

        Args:
            loop: the front's.
            sessions_max: more are turned away.
            threads: of the engine, per inference; told to applications.
            woken: called when there is something to `take`.
        """
        self.threads = threads
        self._loop = loop
        self._sessions_max = sessions_max
        self._woken = woken
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._open: dict[int, Application] = {}
        self._count = 0
        self._inbox: deque[tuple[Application, Frame | None]] = deque()

    # --- the control thread --------------------------------------------------------------------

    def take(self) -> list[tuple[Application, Frame | None]]:
        """What was said since the last time; None: the connection has ended."""
        found: list[tuple[Application, Frame | None]] = []
        while self._inbox:
            found.append(self._inbox.popleft())
        return found

    def send(self, application: Application, frame: Frame) -> None:
        """Say something; the frame's descriptors are copied."""
        copies = tuple(os.dup(descriptor) for descriptor in frame.descriptors)
        self._loop.post(lambda: self._send(application, frame._replace(descriptors=copies)))

    def drop(self, application: Application) -> None:
        """Hang up on an application that does not keep to the protocol, or does not listen."""
        self._loop.post(lambda: self._end(application))

    # --- the front's thread --------------------------------------------------------------------

    def listen(self, state_dir: Path) -> None:
        """Accept from now on; does nothing where no session is allowed.

        Raises:
            BadInputError: the state folder cannot be written.
        """
        if self._sessions_max == 0:
            return
        path = state_dir / SESSIONS_SOCKET
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with translate_os_errors("listen on", path):
            path.unlink(missing_ok=True)  # left by an agent that was killed; we hold its lock
            with Shortened(state_dir) as folder:
                listener.bind(str(folder / SESSIONS_SOCKET))
            os.chmod(path, 0o600)  # noqa: PTH101 - before anybody can be in the backlog
            listener.listen(BACKLOG)
        listener.setblocking(False)
        self._listener, self._path = listener, path
        self._loop.watch(listener.fileno(), READ, lambda _: self._accept(listener))

    def close(self) -> None:
        """Hang up on everybody: they go on by themselves and come back."""
        if self._listener is not None and self._path is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            self._path.unlink(missing_ok=True)
        for application in self._open.values():
            self._loop.forget(application.channel.socket.fileno())
            application.channel.close()  # our doing: nobody is told that they ended
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # gone again, or no descriptors left
        pid, uid = sockets.peer(sock)
        problem = self._unwelcome(uid)
        sock.setblocking(False)
        channel = Channel(sock, wire.SESSION_FRAME_BYTES_MAX)
        if problem:
            log.warning("session of pid %d refused: %s", pid, problem)
            refuse(channel, problem)
            return
        self._count += 1
        application = self._open[self._count] = Application(self._count, pid, channel)
        self._loop.watch(sock.fileno(), READ, lambda events: self._ready(application, events))

    def _unwelcome(self, uid: int) -> str:
        if not sockets.trusted(uid):
            return f"it runs as user {uid}, the agent as {os.geteuid()}"
        if len(self._open) >= self._sessions_max:
            return f"{self._sessions_max} sessions are open ([serve] sessions_max)"
        return ""

    def _ready(self, application: Application, events: int) -> None:
        channel = application.channel
        try:
            if events & WRITE:
                channel.flush()
                if not channel.unsent:
                    self._loop.change(channel.socket.fileno(), READ)
            frames = channel.receive() if events & ~WRITE else []
        except BlockingIOError:
            return
        except (OSError, BugError) as exc:
            log.warning("session of pid %d: %s", application.pid, exc)
            frames = None
        if frames is None:
            self._end(application)
            return
        for frame in frames:
            for descriptor in frame.descriptors:
                os.close(descriptor)  # nobody asked for any
            self._inbox.append((application, frame._replace(descriptors=())))
        if frames:
            self._woken()

    def _send(self, application: Application, frame: Frame) -> None:
        channel = application.channel
        try:
            if application.number in self._open:
                channel.send(frame)
                if channel.unsent:
                    self._loop.change(channel.socket.fileno(), READ | WRITE)
        except OSError:
            pass  # it is gone; reading says so
        finally:
            for descriptor in frame.descriptors:
                os.close(descriptor)

    def _end(self, application: Application) -> None:
        if self._open.pop(application.number, None) is None:
            return
        self._loop.forget(application.channel.socket.fileno())
        application.channel.close()
        self._inbox.append((application, None))
        self._woken()


def refuse(channel: Channel, problem: str) -> None:
    """Tell an application why not, and hang up."""
    refusal = wire.Refusal(error="UnavailableError", message=problem)
    with contextlib.suppress(OSError):  # it did not wait
        channel.send(Frame(FrameKind.FAILED, msgspec.json.encode(refusal)))
    channel.close()
