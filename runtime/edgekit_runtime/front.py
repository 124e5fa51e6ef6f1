"""Front: accepts connections, passes each to the worker its request is for, and answers the rest.

A connection belongs to the front or to one worker. A worker that is asked for something else
gives it back, with the bytes it has read; so does one that is retired. The agent keeps a copy of
each socket: when a worker dies, its connections live on, and requests it had not answered get 503
and a Retry-After.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic

import msgspec

from edgekit_runtime import client, http1, oip, wire
from edgekit_runtime.board import Grip
from edgekit_runtime.client import Client, Connections
from edgekit_runtime.control import Control
from edgekit_runtime.http1 import HttpError, Request
from edgekit_runtime.lane import Lane, Phase
from edgekit_runtime.loop import READ, Loop
from edgekit_runtime.replies import ACTIONS
from edgekit_runtime.serving import Live, Serving
from edgekit_runtime.supervision import Ending
from edgekit_runtime.wire import Frame, FrameKind
from edgekit_runtime.worker_model import WorkerModel

RETRY_S = 1  # after a worker has ended
ACCEPTS_MAX = 16  # in a row, before others get their turn
LEAVE_S = 5.0  # slow readers of a retired worker's answers have this long


class Limits(msgspec.Struct, frozen=True):
    """What the endpoint takes at once."""

    body_bytes_max: int
    bodies_bytes_max: int  # being received by one process
    connections_max: int
    client_s_max: float


class _Handed(msgspec.Struct):
    """A connection that a worker has."""

    sock: socket.socket
    worker: WorkerModel


class Front(Connections):
    """One thread's; `changed` may be called by any."""

    def __init__(
        self, loop: Loop, limits: Limits, control: Control, *, woken: Callable[[], None]
    ) -> None:
        """No connections yet.

        Args:
            loop: the thread's loop.
            limits: what is taken at once.
            control: answers what is not for a worker.
            woken: called when a worker has ended untold.
        """
        super().__init__(
            loop,
            body_bytes_max=limits.body_bytes_max,
            bodies_bytes_max=limits.bodies_bytes_max,
            client_s_max=limits.client_s_max,
        )
        self._limits = limits
        self._control = control
        self._woken = woken
        self._lanes: dict[str, Lane] = {}
        self._handed: dict[int, _Handed] = {}
        self._parked: dict[int, Client] = {}
        self._numbers = list(range(limits.connections_max))
        self._leaving: list[tuple[WorkerModel, float]] = []
        self._listening: list[socket.socket] = []
        control.lanes = self._lanes

    def changed(self, serving: Serving) -> None:
        """What is to serve has changed."""
        self._loop.post(lambda: self._lane(serving).sync())

    def listen(self, sock: socket.socket) -> None:
        """Accept from a listening socket."""
        sock.setblocking(False)
        self._listening.append(sock)
        self._loop.watch(sock.fileno(), READ, lambda _: self._accept(sock))

    def workers(self) -> list[WorkerModel]:
        """Workers that serve, or are about to."""
        return [worker for lane in self._lanes.values() for worker, _ in lane.arms]

    def watch(self, now: float) -> None:
        """Look after workers and slow clients; called every so often."""
        followers = (lane.link.follower for lane in self._lanes.values())
        for worker in (*self.workers(), *filter(None, followers)):
            worker.check()
        self.sweep(now)
        held = {handed.worker for handed in self._handed.values()}
        for worker, since in list(self._leaving):
            if worker not in held or now - since > LEAVE_S:
                self._leaving.remove((worker, since))
                self._let_go_of(worker)

    def drain(self) -> None:
        """Stop accepting and have what was received answered. `idle` says when that is done."""
        for sock in self._listening:
            self._loop.forget(sock.fileno())
            sock.close()
        self._listening.clear()
        for lane in self._lanes.values():
            lane.drain()

    @property
    def idle(self) -> bool:
        """Whether no worker has a request."""
        return not self.workers()

    def close(self) -> None:
        """Hang up on everybody."""
        for found in list(self.clients.values()):
            self.drop(found)
        for handed in self._handed.values():
            handed.sock.close()
        for worker, _ in self._leaving:
            worker.close()

    # --- see Connections -----------------------------------------------------------------------

    def received(self, found: Client) -> None:
        """Where a request is for is known from its first line."""
        lane = self._lane_of(found)
        if lane is not None and lane.phase is Phase.CLOSED and lane.serving.live is not None:
            lane.sync()  # "ready" is said as soon as something is to serve, which may be just now
        worker = lane.pick(second=found.second) if lane is not None else None
        if worker is not None:
            self._hand(found, worker)
        elif lane is None or (
            lane.phase is Phase.CLOSED and not (found.second and lane.second.waits)
        ):
            self.next(found)
        elif found.number not in self._parked:
            self._parked[found.number] = found
            found.asked = True
            self.mute(found)

    def requested(self, found: Client, request: Request) -> None:
        """Nobody else answers it."""
        found.second = found.settled = False
        self.answer(found, self._control.answer(request), keep_alive=request.keep_alive)

    def refused(self, status: int) -> None:
        """Counted."""
        self._control.metrics.refuse(status)

    def gripped(self, found: Client, grip: Grip) -> None:
        """Nobody outlives the front who would have to know."""

    def lost(self, found: Client) -> None:
        """Its number is free again."""
        self._parked.pop(found.number, None)
        self._numbers.append(found.number)

    # --- connections ---------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # nobody waits, or it is gone again, or there are no descriptors
            if not self._numbers:
                _turn_away(sock)
                self.refused(503)
                continue
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.adopt(sock, self._numbers.pop())

    def _lane(self, serving: Serving) -> Lane:
        lane = self._lanes.get(serving.model)
        if lane is None:
            lane = self._lanes[serving.model] = Lane(
                serving,
                self._loop,
                connection=self._returned,
                ended=self._ended,
                left=self._left,
                settled=self._settled,
                fallen=self._woken,
            )
        return lane

    def _lane_of(self, found: Client) -> Lane | None:
        line = found.parser.line
        words = line.split(b" ") if line is not None else []
        if len(words) != 3 or words[0] != b"POST":
            return None
        route = oip.route(http1.path_of(words[1]))
        if route is None or route.action not in ACTIONS:
            return None
        return self._lanes.get(route.model)

    def _hand(self, found: Client, worker: WorkerModel) -> None:
        unread = found.parser.unread()
        self._loop.forget(found.sock.fileno())
        del self.clients[found.number]
        found.parser.close()
        self._handed[found.number] = _Handed(found.sock, worker)
        worker.send(
            wire.handed(
                FrameKind.TAKE,
                found.number,
                unread,
                ended=found.ended,
                other=found.settled,
                descriptor=found.sock.fileno(),
            )
        )

    def _returned(self, worker: WorkerModel, frame: Frame) -> None:
        number, ended = wire.read_handed(frame)
        handed = self._handed.pop(number)
        assert handed.worker is worker
        if frame.kind == FrameKind.GONE:
            handed.sock.close()
            self._numbers.append(number)
            return
        found = self.adopt(handed.sock, number, frame.body, ended=ended)
        found.fresh = False
        if wire.is_other(frame):
            found.settled = True
            found.second = all(lane.second.worker is not worker for lane in self._lanes.values())
        if frame.body or ended:
            self.received(found)

    def _settled(self, lane: Lane) -> None:
        for found in list(self._parked.values()):
            if self._lane_of(found) is lane:
                del self._parked[found.number]
                found.asked = False
                self.unmute(found)
                self.received(found)

    # --- workers -------------------------------------------------------------------------------

    def _left(self, worker: WorkerModel, live: Live) -> None:
        self._control.metrics.fold(live, worker.board)
        if worker.failure is None:
            self._leaving.append((worker, monotonic()))

    def _ended(self, worker: WorkerModel, ending: Ending) -> None:
        """Its connections live on; what it had not answered is told so."""
        self._leaving = [(each, since) for each, since in self._leaving if each is not worker]
        for number, handed in list(self._handed.items()):
            if handed.worker is not worker:
                continue
            del self._handed[number]
            grip = worker.board.grips[number]
            found = self.adopt(handed.sock, number)
            found.fresh = False
            if grip == Grip.ANSWERING:
                self.drop(found)
            elif grip != Grip.IDLE:
                error = HttpError(503, f"not answered: {ending.reason}", retry_s=RETRY_S)
                self.refuse(found, error)
        self._woken()

    def _let_go_of(self, worker: WorkerModel) -> None:
        for number, handed in list(self._handed.items()):
            if handed.worker is worker:  # it reads too slowly
                del self._handed[number]
                self._numbers.append(number)
                handed.sock.close()
        worker.close()


def _turn_away(sock: socket.socket) -> None:
    """One connection too many."""
    error = HttpError(503, "too many connections", retry_s=RETRY_S)
    sock.setblocking(False)
    try:
        sock.send(http1.render(client.refusal(error), keep_alive=False))
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it is gone
    sock.close()
