"""A client's connection, and what agent and worker alike do with connections.

Nothing is read from a client before its last answer is sent: the kernel's buffers hold it back.
"""

from __future__ import annotations

import contextlib
import select
import socket
from abc import ABC, abstractmethod
from time import monotonic

from edgekit_runtime import http1, oip
from edgekit_runtime.board import Grip
from edgekit_runtime.http1 import HttpError, Parser, Reply, Request, Room
from edgekit_runtime.loop import NOTHING, READ, WRITE, Loop

KEEP_ALIVE_S = 75.0  # longer than the clients' own, so that they close and never lose a request
LINGER_S = 2.0  # a refused client has this long to read why
LINGER_BYTES_MAX = 1 << 20  # and may send so much meanwhile
_BROKEN = select.EPOLLERR | select.EPOLLHUP


class Client:
    """One connection; `Connections` drives it."""

    __slots__ = (
        "asked", "broken", "ended", "fresh", "keep_alive", "lingered", "muted", "number", "parser",
        "second", "settled", "since", "sock", "unsent",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, number: int, parser: Parser) -> None:
        self.sock = sock
        self.number = number
        self.parser = parser
        self.since = monotonic()  # of the oldest thing the client owes us
        self.second = False  # its next request is the second arm's
        self.settled = False  # an arm has found whose its next request is
        self.asked = False  # a request of it is to be answered
        self.fresh = True  # it has not asked anything yet
        self.ended = False  # it has stopped sending
        self.broken = False  # it is gone, and is owed an answer
        self.muted = False  # its events are ignored
        self.keep_alive = True  # after the answer that is being sent
        self.lingered: int | None = None  # bytes discarded since it was refused
        self.unsent: bytes | memoryview = b""

    def receive(self) -> None:
        """Read once. Raises `OSError`, `BlockingIOError`."""
        room = self.parser.room()
        if room is not None:
            count = self.sock.recv_into(room)
            self.parser.received(count)
            self.ended = not count
            return
        data = self.sock.recv(http1.RECEIVE_BYTES)
        if data:
            self.parser.feed(data)
        else:
            self.ended = True

    def send(self, data: bytes | memoryview) -> None:
        """Send what the socket takes; the rest is `unsent`. Raises `OSError`."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self.unsent = memoryview(data)[sent:] if sent < len(data) else b""
        if sent:
            self.since = monotonic()

    def close(self, *, hang_up: bool) -> None:
        """Close our copy of the socket; ``hang_up`` ends the connection for other copies, too."""
        self.parser.close()
        if hang_up:
            with contextlib.suppress(OSError):  # it is gone already
                self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Connections(ABC):
    """All connections of one loop. What is done with requests is the subclass's."""

    def __init__(
        self, loop: Loop, *, body_bytes_max: int, bodies_bytes_max: int, client_s_max: float
    ) -> None:
        self._loop = loop
        self._body_bytes_max = body_bytes_max
        self._client_s_max = client_s_max
        self._room = Room(bodies_bytes_max)
        self.clients: dict[int, Client] = {}  # by number

    # --- for the subclass ----------------------------------------------------------------------

    def received(self, found: Client) -> None:
        """Bytes arrived, or the client stopped sending."""
        self.next(found)

    @abstractmethod
    def requested(self, found: Client, request: Request) -> None:
        """A request is here; `answer` it, or let go of the client."""

    @abstractmethod
    def refused(self, status: int) -> None:
        """An error status was answered."""

    @abstractmethod
    def gripped(self, found: Client, grip: Grip) -> None:
        """How a connection is held has changed."""

    @abstractmethod
    def lost(self, found: Client) -> None:
        """The connection has ended."""

    # --- what happens to a connection ----------------------------------------------------------

    def adopt(
        self, sock: socket.socket, number: int, held: bytes = b"", *, ended: bool = False
    ) -> Client:
        """Begin with a connection of which ``held`` was read and not answered."""
        sock.setblocking(False)
        parser = Parser(self._body_bytes_max, self._room, held)
        found = Client(sock, number, parser)
        found.ended = ended
        self.clients[number] = found
        self._loop.watch(sock.fileno(), READ, lambda events: self._ready(found, events))
        return found

    def let_go(self, found: Client, *, hang_up: bool) -> None:
        """Be done with a connection."""
        del self.clients[found.number]
        self._loop.forget(found.sock.fileno())
        self.gripped(found, Grip.NONE)
        found.close(hang_up=hang_up)

    def drop(self, found: Client) -> None:
        """The connection has ended, or is to."""
        self.let_go(found, hang_up=True)
        self.lost(found)

    def next(self, found: Client) -> None:
        """Hand the next request on, once it is whole."""
        try:
            request = found.parser.take()
            if request is None and found.parser.wants_go_on():
                found.sock.send(http1.CONTINUE)
        except HttpError as exc:
            self.refuse(found, exc)
            return
        except OSError:
            self.drop(found)
            return
        if request is not None:
            found.fresh, found.asked = False, True
            self.requested(found, request)
        elif found.ended:
            self.drop(found)
        else:
            self._settle(found)

    def answer(self, found: Client, reply: Reply, *, keep_alive: bool) -> None:
        """Send an answer."""
        found.asked = False
        found.keep_alive = keep_alive
        if reply.status >= 400:
            self.refused(reply.status)
        if found.broken:
            self.drop(found)
            return
        data = http1.render(reply, keep_alive=keep_alive)
        try:
            found.send(data)
            if found.unsent:
                self.gripped(found, Grip.ANSWERING)
                self._listen(found, WRITE)
            else:
                self._sent(found)
        except OSError:
            self.drop(found)

    def refuse(self, found: Client, error: HttpError) -> None:
        """Tell the client why, and hang up when it has had time to read it."""
        self.refused(error.status)
        data = http1.render(refusal(error), keep_alive=False)
        try:
            found.sock.send(data)
            found.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(found)
            return
        # Closing with unread bytes resets the connection, and the client may never see the reason.
        found.lingered, found.asked, found.unsent, found.since = 0, False, b"", monotonic()
        self.gripped(found, Grip.ANSWERING)
        self.unmute(found)

    def mute(self, found: Client) -> None:
        """Do not look at what it sends."""
        self._listen(found, NOTHING)

    def unmute(self, found: Client) -> None:
        """Look at what it sends again."""
        if not found.broken:
            self._listen(found, READ)

    def sweep(self, now: float) -> None:
        """Hang up on clients that do not finish what they began, or were idle for long."""
        for found in list(self.clients.values()):
            waited = now - found.since
            if found.asked:
                continue
            if found.lingered is not None:
                if waited > LINGER_S:
                    self.drop(found)
            elif found.unsent:
                if waited > self._client_s_max:
                    self.drop(found)
            elif found.fresh or not found.parser.empty:
                if waited > self._client_s_max:
                    self.refuse(found, HttpError(408, "the request took too long to arrive"))
            elif waited > KEEP_ALIVE_S:
                self.drop(found)

    def _ready(self, found: Client, events: int) -> None:
        try:
            if found.lingered is not None:
                self._linger(found)
            elif found.unsent:
                found.send(found.unsent)
                if not found.unsent:
                    self.unmute(found)
                    self._sent(found)
            elif found.asked:
                if events & _BROKEN:
                    self._loop.forget(found.sock.fileno())
                    found.broken = True
                else:
                    self.mute(found)
            else:
                if found.parser.empty:
                    found.since = monotonic()
                self.gripped(found, Grip.ASKED)  # before anything is taken out of the socket
                found.receive()
                self.received(found)
        except BlockingIOError:
            self._settle(found)
        except OSError:
            self.drop(found)

    def _sent(self, found: Client) -> None:
        """An answer is out."""
        if not found.keep_alive:
            self.drop(found)
            return
        if found.muted:
            self.unmute(found)
        found.since = monotonic()
        if found.parser.empty and not found.ended:
            self.gripped(found, Grip.IDLE)
        else:
            self.gripped(found, Grip.ASKED)
            # Later, not from here: a client may have sent a thousand requests ahead.
            self._loop.post(lambda: self._go_on(found))

    def _go_on(self, found: Client) -> None:
        if self.clients.get(found.number) is found and not (found.asked or found.unsent):
            self.received(found)

    def _settle(self, found: Client) -> None:
        if found.parser.empty:
            self.gripped(found, Grip.IDLE)

    def _linger(self, found: Client) -> None:
        data = found.sock.recv(http1.RECEIVE_BYTES)
        assert found.lingered is not None
        found.lingered += len(data)
        if not data or found.lingered > LINGER_BYTES_MAX:
            self.drop(found)

    def _listen(self, found: Client, events: int) -> None:
        found.muted = events == NOTHING
        self._loop.change(found.sock.fileno(), events)


def refusal(error: HttpError) -> Reply:
    """What a client is told."""
    return Reply(error.status, oip.error(error.message), error.headers)
