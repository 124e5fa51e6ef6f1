"""Desk: a worker's connections, and the queue of requests its model answers one by one."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable
from time import monotonic, monotonic_ns
from typing import NoReturn

from edgekit_runtime import client, oip, wire
from edgekit_runtime.answering import Answerer
from edgekit_runtime.board import Board, Grip
from edgekit_runtime.client import Client, Connections
from edgekit_runtime.http1 import HttpError, Reply, Request
from edgekit_runtime.loop import READ, WRITE, Loop
from edgekit_runtime.oip import Route
from edgekit_runtime.replies import ACTIONS
from edgekit_runtime.samples import Sampler
from edgekit_runtime.supervision import EXIT_MEMORY
from edgekit_runtime.wire import Channel, Frame, FrameKind

SWEEP_S = 0.25  # between looks at slow clients
TURN_S = 0.002  # of answering in a row; then what the agent and clients say gets its turn


class Desk(Connections):
    """One thread's."""

    def __init__(
        self, order: wire.Order, answerer: Answerer, board: Board, channel: Channel
    ) -> None:
        super().__init__(
            Loop(),
            body_bytes_max=order.body_bytes_max,
            bodies_bytes_max=order.bodies_bytes_max,
            client_s_max=order.client_s_max,
        )
        self._model = order.model
        self._requests_max = order.requests_max
        self._answerer = answerer
        self.sampler = Sampler(self._loop, answerer.disagreements)
        self._board = board
        self._channel = channel
        self._queue: deque[tuple[Client, Request, Route]] = deque()
        self._hung_up = False
        self._retired = False
        self._swept_at = 0.0

    def run(self, handle: Callable[[Frame], None]) -> None:
        """Answer until the agent hangs up; its frames go to ``handle``."""
        channel, loop = self._channel, self._loop

        def ready(events: int) -> None:
            if events & WRITE:
                channel.flush()
                if not channel.unsent:
                    loop.change(channel.socket.fileno(), READ)
            if events & ~WRITE:
                frames = channel.receive()
                self._hung_up = frames is None
                for frame in frames or ():
                    handle(frame)

        loop.watch(channel.socket.fileno(), READ, ready)
        while not self._hung_up:
            loop.turn(0 if self._queue else SWEEP_S)
            now = monotonic()
            end = now + TURN_S
            while self._queue and now < end:
                self._answer_next()
                now = monotonic()
            if now - self._swept_at >= SWEEP_S:
                self._swept_at = now
                self.sweep(now)
        for found in list(self.clients.values()):
            self.let_go(found, hang_up=False)  # the agent decides what becomes of them
        loop.close()

    def take(self, frame: Frame) -> None:
        """A connection was handed to us."""
        number, ended = wire.read_handed(frame)
        (descriptor,) = frame.descriptors
        found = self.adopt(socket.socket(fileno=descriptor), number, frame.body, ended=ended)
        found.settled = wire.is_other(frame)
        self.gripped(found, Grip.ASKED)
        self.next(found)

    def retire(self, *, answer: bool) -> None:
        """Give every connection back; what is queued is answered before, or goes with them."""
        while answer and self._queue:
            self._answer_next()
        unanswered = {found.number: request for found, request, _ in self._queue}
        self._queue.clear()
        self._board.queue(0)
        self._retired = True
        for found in list(self.clients.values()):
            # A slow reader gets the rest of its answer from us, and is given back after it.
            if not found.unsent and found.lingered is None:
                self._give_back(found, unanswered.get(found.number))
        self._say(Frame(FrameKind.RETIRED))

    # --- see Connections -----------------------------------------------------------------------

    def requested(self, found: Client, request: Request) -> None:
        """Queue it, unless it is not for this model."""
        route = oip.route(request.path)
        ours = route is not None and route.model == self._model and route.action in ACTIONS
        settled, found.settled = found.settled, False
        if route is None or not ours or self._retired:
            self._give_back(found, request)
        elif not settled and self._answerer.splitting.elsewhere(request, route):
            self._give_back(found, request, other=True)
        elif len(self._queue) >= self._requests_max:
            error = HttpError(429, "too many requests at once", retry_s=1)
            self.answer(found, client.refusal(error), keep_alive=request.keep_alive)
        else:
            self._queue.append((found, request, route))
            self._board.queue(len(self._queue))

    def refused(self, status: int) -> None:
        """Counted on the board."""
        self._board.refuse(status)

    def gripped(self, found: Client, grip: Grip) -> None:
        """Noted on the board, which outlives us."""
        self._board.grips[found.number] = grip
        if self._retired and grip is Grip.IDLE:
            self._give_back(found, None)

    def lost(self, found: Client) -> None:
        """The agent holds a copy of the socket."""
        self._say(wire.handed(FrameKind.GONE, found.number, b"", ended=True))

    # --- answering -----------------------------------------------------------------------------

    def _answer_next(self) -> None:
        found, request, route = self._queue.popleft()
        board = self._board
        board.queue(len(self._queue))
        board.begin(monotonic_ns())
        try:
            reply = self._answerer.answer(request, route)
        except MemoryError:
            end_for_memory()
        except Exception:  # noqa: BLE001 - a bug of ours; one request must not end the model
            traceback.print_exc()
            reply = Reply(500, oip.error("internal error, see the agent's log"))
        seen = self._answerer.seen
        if seen is None:
            board.begin(0)
        else:
            board.end(monotonic_ns())
            board.count(*seen)
        self.answer(found, reply, keep_alive=request.keep_alive)
        answered = self._answerer.answered
        if answered is not None and not self._queue:  # late: nobody is to wait for a sample
            self.sampler.offer(answered.request, answered.inputs, answered.outputs)

    def _give_back(self, found: Client, request: Request | None, *, other: bool = False) -> None:
        unread = found.parser.unread()
        if request is not None:
            unread = request.raw + unread
        number, ended = found.number, found.ended
        self.let_go(found, hang_up=False)
        self._say(wire.handed(FrameKind.BACK, number, unread, ended=ended, other=other))

    def _say(self, frame: Frame) -> None:
        self._channel.send(frame)
        if self._channel.unsent:
            self._loop.change(self._channel.socket.fileno(), READ | WRITE)


def end_for_memory() -> NoReturn:
    """An allocation failed: end now, and say so with the exit code."""
    sys.stderr.write("out of memory\n")
    sys.stderr.flush()
    os._exit(EXIT_MEMORY)
