"""A worker process: holds one model and answers the connections its agent hands to it.

Started by the agent as ``python -m edgekit_runtime.worker FD``, FD being a connected Unix socket,
or in a container with the path of a socket instead. The agent accepts connections and passes them
here as descriptors; requests and answers never pass through the agent. What is answered is counted
before, in the agent's regions, which are shared memory. One inference at a time. A worker ends with
its agent, however that ends, even in the middle of an inference.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, NoReturn

import msgspec
import numpy as np

from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import desk, engines, fitness, launch, process_facts, wire
from edgekit_runtime.answering import Answerer
from edgekit_runtime.board import Board
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.desk import Desk
from edgekit_runtime.errors import EngineError, UnsuitableError
from edgekit_runtime.follower import Follower
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.region import Region
from edgekit_runtime.samples import Source
from edgekit_runtime.session import Place, Session, is_memory
from edgekit_runtime.stderr import Lossy
from edgekit_runtime.wire import Channel, Frame, FrameKind

if TYPE_CHECKING:
    from edgekit_runtime.upstream import Upstream


class Worker:
    """Serves one channel until its end."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._clock = SystemClock()
        self._order: wire.Order | None = None
        self._board: Board | None = None
        self._predictor: Predictor | None = None
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
        if kind == FrameKind.LOAD:
            self._load(frame)
        elif kind == FrameKind.SERVE:
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

    def _load(self, frame: Frame) -> None:
        order = msgspec.json.decode(frame.meta, type=wire.Order)
        (descriptor,) = frame.descriptors
        self._board = Board(descriptor, order.connections_max)
        os.close(descriptor)
        try:
            if order.memory_bytes_max:
                _limit_memory(order.memory_bytes_max)
            load = fitness.load_tested if order.tested else fitness.load
            loaded = load(LayoutReader(Path(order.root)), order.model, order.ref, order.threads)
        except (EdgekitError, MemoryError) as exc:
            self._send(FrameKind.FAILED, msgspec.json.encode(_refusal(exc)))
            return
        self._order, self._predictor = order, loaded
        facts = wire.Facts(
            manifest=loaded.manifest,
            contract=loaded.contract,
            reference=loaded.reference,
            expectation=loaded.expectation,
        )
        self._send(FrameKind.LOADED, msgspec.json.encode(facts))

    def _serve(self, frame: Frame) -> None:
        """Count elsewhere from here on; the first time, begin to answer."""
        assert self._order is not None
        assert self._predictor is not None
        assert self._board is not None
        self._end_following()
        grant = msgspec.json.decode(frame.meta, type=wire.Grant)
        regions = [Region.of(descriptor) for descriptor in frame.descriptors]
        place = Place.of(grant.version, grant.slot, regions, grant.compose)
        if self._session is None:
            self._session = Session(self._predictor, place, self._clock)
            order, board = self._order, self._board

            def upstream() -> Upstream:
                from edgekit_runtime.upstream import Upstream  # noqa: PLC0415 - seldom needed

                return Upstream(order.socket, board)

            self._answerer = Answerer(order.model, self._session, order.body_bytes_max, upstream)
            self._desk = Desk(self._order, self._answerer, self._board, self._channel)
        else:
            before, self._session.place = self._session.place, place
            before.journal.close()
        if self._answerer is not None:
            self._answerer.splitting.apply()
        self._send(FrameKind.SERVING)

    def _sample(self, desk: Desk, frame: Frame) -> None:
        sampling = msgspec.json.decode(frame.meta, type=wire.Sampling)
        if frame.descriptors:
            desk.sampler.begin(frame.descriptors[0], sampling.bytes_max)
        if sampling.end:
            desk.sampler.end()
        desk.sampler.rate(sampling.share)

    def _follow(self, frame: Frame) -> None:
        assert self._predictor is not None
        assert self._board is not None
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
            self._follower.follow(sample)
        except MemoryError:
            desk.end_for_memory()

    def _end_following(self) -> None:
        if self._source is not None:
            self._source.close()
        if self._follower is not None:
            self._follower.close()
        self._source = self._follower = None

    def _canary(self) -> None:
        """Run the model; that it ends, and when, stands on the board."""
        assert self._predictor is not None
        assert self._board is not None
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


def _refusal(exc: EdgekitError | MemoryError) -> wire.Refusal:
    if isinstance(exc, MemoryError) or is_memory(exc):
        return wire.Refusal(error="ResourceError", message="out of memory while loading")
    kinds = (UnsuitableError, ResourceError, BadInputError)
    name = next((kind.__name__ for kind in kinds if isinstance(exc, kind)), "UnsuitableError")
    return wire.Refusal(error=name, message=exc.message, hint=exc.hint)


def _limit_memory(bytes_max: int) -> None:
    """Bound private writable memory (Linux 4.7 and newer) from here on."""
    limit = (process_facts.data_bytes() or 0) + bytes_max
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _end_with_agent(sock: socket.socket) -> NoReturn:
    """Waits beside a running inference: a hung model must not outlive the agent."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> None:
    """Serve the socket that the only argument names."""
    # Ctrl-C and a service manager's stop reach the whole group; the agent drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stderr = Lossy()
    faulthandler.enable()
    logging.basicConfig(stream=sys.stderr, format="%(levelname).1s worker: %(message)s")
    np.seterr(all="ignore")  # what overflows becomes infinite, and the guard says so
    sock = launch.channel(sys.argv[1])
    threading.Thread(target=_end_with_agent, args=(sock,), daemon=True).start()
    engines.preload()  # a worker started ahead of its order has the library in memory
    Worker(Channel(sock)).run()


if __name__ == "__main__":
    main()
