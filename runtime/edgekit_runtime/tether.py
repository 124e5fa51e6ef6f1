"""An application's end of the agent's private socket: never waits once it is open.

What the agent says is looked at between calls. When the agent goes away, connecting is tried again
with growing pauses; nothing is lost meanwhile, because counting needs no agent.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import weakref
from pathlib import Path
from time import monotonic

import msgspec

from edgekit.contracts.backoff import Backoff
from edgekit.contracts.errors import BugError, UnavailableError, UsageError
from edgekit_runtime import config as configuration
from edgekit_runtime import sockets, wire
from edgekit_runtime.sockets import Shortened
from edgekit_runtime.wire import Channel, Frame, FrameKind

RETRY_S_BASE = 0.5
RETRY_S_MAX = 30.0  # an agent that was updated has this long to miss us
_NEWS = frozenset({FrameKind.ACTIVE, FrameKind.ABSENT, FrameKind.FAILED})


class Tether:
    """Not thread-safe."""

    def __init__(self, path: Path, hello: wire.Hello) -> None:
        """Not connected yet; ``hello`` is what to say whenever we are."""
        self._path = path
        self.hello = hello
        self._channel: Channel | None = None
        self._poll = select.poll()
        self._backoff = Backoff(base_s=RETRY_S_BASE, cap_s=RETRY_S_MAX)
        self._retry_at = 0.0
        self._closed = False
        self.pid = os.getpid()  # of the process it belongs to
        self.abandoned = False  # we are a child of that one
        _OPEN.add(self)

    @property
    def connected(self) -> bool:
        """Whether an agent listens, as far as we know."""
        return self._channel is not None

    def connect(self) -> None:
        """Connect and say hello.

        Raises:
            UnavailableError: no agent listens there, or not ours.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            with Shortened(self._path.parent) as folder:
                sock.connect(str(folder / self._path.name))
            _, uid = sockets.peer(sock)
        except OSError as exc:
            sock.close()
            raise UnavailableError(
                f"no agent answers on {self._path}: {exc.strerror or exc}",
                hint="start it (edgekit-agent run --config …), as the same user as this one",
            ) from exc
        if not sockets.trusted(uid):
            sock.close()
            raise UnavailableError(
                f"{self._path} belongs to user {uid}, this is user {os.geteuid()}",
                hint="run the application as the agent's user",
            )
        self._channel = Channel(sock)
        self._poll.register(sock, select.POLLIN)
        self._backoff.reset()
        self.say(FrameKind.HELLO, self.hello)

    def wait(self, timeout_s: float) -> Frame:
        """The first news after `connect`.

        Raises:
            UnavailableError: there is none in time, or the agent hung up.
        """
        end = monotonic() + timeout_s
        while self._channel is not None:
            left_s = end - monotonic()
            if left_s <= 0:
                raise UnavailableError(
                    f"the agent did not say within {timeout_s:g} s what to run",
                    hint="edgekit-agent status says how far it is",
                )
            self._poll.poll(left_s * 1000)
            found = self._read()
            if found is not None:
                return found
        raise UnavailableError("the agent hung up", hint="edgekit-agent logs says why")

    def news(self) -> Frame | None:
        """The newest thing the agent wants, None when there is nothing new. Never waits."""
        if self._channel is None:
            self._connect_again()
        if self._channel is None or not self._poll.poll(0):
            return None
        return self._read()

    def say(self, kind: FrameKind, value: object = None) -> None:
        """Tell the agent, if there is one. That it hung up, and why, is read like all it says."""
        if self._channel is None:
            return
        meta = b"" if value is None else msgspec.json.encode(value)
        with contextlib.suppress(OSError):
            self._channel.send(Frame(kind, meta))

    def close(self) -> None:
        """Say goodbye; in a child that was forked it is not ours to say."""
        self._closed = True
        if not self.abandoned:
            self.say(FrameKind.GOODBYE)
        self._lose()

    def abandon(self) -> None:
        """In a child that was forked: let go of the parent's connection without a word."""
        self._closed = self.abandoned = True
        self._lose()

    def _connect_again(self) -> None:
        if self._closed or monotonic() < self._retry_at:
            return
        self._retry_at = monotonic() + self._backoff.next_delay_s()
        try:
            self.connect()
        except UnavailableError:
            return  # later

    def _read(self) -> Frame | None:
        """The newest frame that matters, of all that were received."""
        assert self._channel is not None
        newest: Frame | None = None
        resets = 0
        while self._channel is not None:
            try:
                frames = self._channel.receive()
            except BlockingIOError:
                break
            except ConnectionResetError:
                resets += 1
                if resets == 1:  # our last words were not read; its own are still there
                    continue
                frames = None
            except (OSError, BugError):
                frames = None
            if frames is None:
                self._lose()
                break
            for frame in frames:
                if frame.kind in _NEWS:
                    discard(newest)
                    newest = frame
                else:
                    discard(frame)
        return newest

    def _lose(self) -> None:
        if self._channel is not None:
            self._poll.unregister(self._channel.socket)
            self._channel.close()
            self._channel = None


_OPEN: weakref.WeakSet[Tether] = weakref.WeakSet()


def _forked() -> None:
    """A child must neither keep its parent's connections open nor speak on them."""
    for each in list(_OPEN):
        each.abandon()


os.register_at_fork(after_in_child=_forked)


def discard(frame: Frame | None) -> None:
    """Close what came along."""
    for descriptor in frame.descriptors if frame is not None else ():
        os.close(descriptor)


def socket_path(
    state_dir: Path | str | None, config: Path | str | None, socket: Path | str | None
) -> Path:
    """Where the agent listens that is named in one of three ways.

    Raises:
        UsageError: it is named in none or several, or the configuration is wrong.
        BadInputError: the configuration cannot be read.
    """
    given = [each for each in (state_dir, config, socket) if each is not None]
    if len(given) != 1:
        raise UsageError(
            f"{len(given)} of state_dir, config and socket are given",
            hint="name the agent in exactly one way",
        )
    if config is not None:
        state_dir = configuration.load(Path(config), os.environ).device.state_dir
    if state_dir is not None:
        return Path(state_dir).absolute() / wire.SESSIONS_SOCKET
    return Path(str(socket)).absolute()
