"""A worker's model at work: answers connections, or follows another model, as its agent says."""

from __future__ import annotations

import select
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING

import msgspec

from edgekit_runtime import desk, wire
from edgekit_runtime.answering import Answerer
from edgekit_runtime.board import Board
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.desk import Desk
from edgekit_runtime.errors import EngineError, is_memory
from edgekit_runtime.follower import Follower
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.region import Labels, Region
from edgekit_runtime.samples import Source
from edgekit_runtime.session import Place, Session
from edgekit_runtime.wire import Channel, Frame, FrameKind

if TYPE_CHECKING:
    from edgekit_runtime.upstream import Upstream


def prepare() -> None:
    """Done ahead: what msgspec looks up once, while requests would wait."""
    for kind in (wire.Grant, wire.Division, Labels):
        msgspec.json.Decoder(kind)


class Holder:
    """Serves one channel until its end."""

    def __init__(
        self, channel: Channel, order: wire.Order, board: Board, predictor: Predictor
    ) -> None:
        """Hold ``predictor``, which ``order`` asked for; what it does is noted on ``board``."""
        self._channel = channel
        self._order = order
        self._board = board
        self._predictor = predictor
        self._clock = SystemClock()
        self._session: Session | None = None
        self._desk: Desk | None = None
        self._answerer: Answerer | None = None
        self._follower: Follower | None = None
        self._source: Source | None = None

    def run(self) -> None:
        """Do what the agent says until it hangs up."""
        while self._desk is None:  # nothing to do but to wait for orders, and to follow
            if self._source is not None and not self._ordered():
                self._follow_next(self._source)
                continue
            frames = self._channel.receive()
            if frames is None:
                return
            for frame in frames:
                self._handle(frame)
        self._channel.socket.setblocking(False)
        self._desk.run(self._handle)

    def _handle(self, frame: Frame) -> None:
        kind = frame.kind
        if kind == FrameKind.SERVE:
            self._serve(frame)
        elif kind == FrameKind.TAKE and self._desk is not None:
            self._desk.take(frame)
        elif kind == FrameKind.RETIRE and self._desk is not None:
            self._desk.retire(answer=bool(frame.meta))
        elif kind == FrameKind.CANARY:
            self._canary()
        elif kind == FrameKind.SAMPLE and self._desk is not None:
            self._sample(self._desk, frame)
        elif kind == FrameKind.FOLLOW:
            self._follow(frame)
        elif kind == FrameKind.DIVIDE and self._answerer is not None:
            self._answerer.splitting.divide(msgspec.json.decode(frame.meta, type=wire.Division))
            self._send(FrameKind.DIVIDED, frame.meta)

    def _serve(self, frame: Frame) -> None:
        """Count elsewhere from here on; the first time, begin to answer."""
        self._end_following()
        grant = msgspec.json.decode(frame.meta, type=wire.Grant)
        regions = [Region.of(descriptor) for descriptor in frame.descriptors]
        place = Place.of(grant.version, grant.slot, regions, grant.compose)
        if self._session is None:
            self._session = Session(self._predictor, place, self._clock)
            order = self._order
            self._answerer = Answerer(
                order.model, self._session, order.body_bytes_max, self._upstream
            )
            self._desk = Desk(order, self._answerer, self._board, self._channel)
        else:
            before, self._session.place = self._session.place, place
            before.journal.close()
        if self._answerer is not None:
            self._answerer.splitting.apply()
        self._send(FrameKind.SERVING)

    def _upstream(self) -> Upstream:
        from edgekit_runtime.upstream import Upstream  # noqa: PLC0415 - seldom needed

        return Upstream(self._order.socket, self._board)

    def _sample(self, desk: Desk, frame: Frame) -> None:
        sampling = msgspec.json.decode(frame.meta, type=wire.Sampling)
        if frame.descriptors:
            desk.sampler.begin(frame.descriptors[0], sampling.bytes_max)
        if sampling.end:
            desk.sampler.end()
        desk.sampler.rate(sampling.share)

    def _follow(self, frame: Frame) -> None:
        order = msgspec.json.decode(frame.meta, type=wire.Following)
        self._end_following()
        samples, region = frame.descriptors
        self._follower = Follower(
            self._predictor,
            Region.of(region),
            self._clock,
            self._board,
            abs_max=order.abs,
            rel_max=order.rel,
        )
        if not order.once:
            self._source = Source(samples)
            return
        try:
            self._follower.replay(samples)
        except MemoryError:
            desk.end_for_memory()
        self._end_following()
        self._send(FrameKind.FOLLOWED)

    def _ordered(self) -> bool:
        """Wait until the agent says something or samples come; whether it was the agent."""
        assert self._source is not None
        if self._source.ready:
            return bool(_readable(self._channel.socket, timeout_ms=0))
        found = _readable(self._channel.socket, self._source.socket)
        return self._channel.socket.fileno() in found

    def _follow_next(self, source: Source) -> None:
        assert self._follower is not None
        sample = source.next()
        if sample is None:
            if not source.receive():  # what served has ended; the agent names the next one
                source.close()
                self._source = None
            return
        try:
            differs = self._follower.follow(sample)
        except MemoryError:
            desk.end_for_memory()
        if differs and sample.request:
            source.disagree(sample.request)

    def _end_following(self) -> None:
        if self._source is not None:
            self._source.close()
        if self._follower is not None:
            self._follower.close()
        self._source = self._follower = None

    def _canary(self) -> None:
        """Run the model; that it ends, and when, stands on the board."""
        self._board.begin(monotonic_ns())
        try:
            self._predictor.model.run(self._predictor.canary())
        except EngineError as exc:
            if is_memory(exc):
                desk.end_for_memory()
        self._board.end(monotonic_ns())

    def _send(self, kind: FrameKind, meta: bytes = b"") -> None:
        self._channel.send(Frame(kind, meta))


def _readable(*sockets: socket.socket, timeout_ms: int | None = None) -> set[int]:
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(timeout_ms)}
