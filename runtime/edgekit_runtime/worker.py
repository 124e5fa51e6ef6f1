"""A worker process: holds one model and answers what comes over its socket pair.

Started by the agent as ``python -m edgekit_runtime.worker FD``, or in a container with the path of
a socket instead. It reads blobs and writes nothing: what is counted goes back with the answer and
is committed by the agent. One inference at a time; it ends with its agent, however that ends, even
in the middle of an inference.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec
import numpy as np

from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import engines, fitness, launch, oip, process_facts, wire
from edgekit_runtime.errors import EngineError, UnsuitableError
from edgekit_runtime.journal import hash_id
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.record import SLOT_NAMES
from edgekit_runtime.serving import Observation
from edgekit_runtime.session import observe
from edgekit_runtime.supervision import EXIT_MEMORY
from edgekit_runtime.wire import Frame, FrameKind

CHUNK_BYTES = 1 << 18
_NOT_COUNTED = Observation(None)


class _Reply(NamedTuple):
    status: int
    body: bytes
    json_length: int = oip.ALL_JSON
    seen: Observation = _NOT_COUNTED
    no_memory: bool = False


class Worker:
    """Serves one channel until its end."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._order: wire.Order | None = None
        self._predictor: Predictor | None = None

    def run(self) -> None:
        """Answer frames until the agent hangs up."""
        reader = wire.Reader()
        while count := self._channel.recv_into(reader.room()):
            for frame in reader.received(count):
                self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind == FrameKind.LOAD:
            self._load(frame)
        elif frame.kind == FrameKind.INFER:
            self._infer(frame)
        elif frame.kind == FrameKind.CANARY:
            self._canary(frame)

    def _load(self, frame: Frame) -> None:
        order = msgspec.json.decode(frame.meta, type=wire.Order)
        try:
            if order.memory_bytes_max:
                _limit_memory(order.memory_bytes_max)
            load = fitness.load_tested if order.tested else fitness.load
            loaded = load(LayoutReader(Path(order.root)), order.model, order.ref, order.threads)
        except (EdgekitError, MemoryError) as exc:
            self._send(FrameKind.FAILED, frame.seq, msgspec.json.encode(_refusal(exc)))
            return
        self._order, self._predictor = order, loaded
        facts = wire.Facts(manifest=loaded.manifest, contract=loaded.contract)
        self._send(FrameKind.LOADED, frame.seq, msgspec.json.encode(facts))

    def _infer(self, frame: Frame) -> None:
        try:
            reply = self._reply(frame)
        except BadInputError as exc:
            reply = _Reply(400, oip.error(exc.message))
        except MemoryError:
            self._end_for_memory()
        except Exception:  # noqa: BLE001 - a bug of ours; one request must not end the model
            traceback.print_exc()
            reply = _Reply(500, oip.error("internal error, see the agent's log"))
        meta = wire.pack_answer(reply.status, reply.json_length, reply.seen)
        self._send(FrameKind.ANSWER, frame.seq, meta, reply.body)
        if reply.no_memory:
            self._end_for_memory()

    def _reply(self, frame: Frame) -> _Reply:
        order, loaded = self._order, self._predictor
        assert order is not None
        assert loaded is not None
        json_length, slot = wire.unpack_ask(frame.meta)
        request, arrays = oip.parse_infer(frame.body, order.body_bytes_max, json_length)
        seen, result = observe(loaded, arrays, hash_id(request.id))
        if isinstance(result, EdgekitError):
            status = 400 if isinstance(result, BadInputError) else 500
            body = oip.error(result.message)
            return _Reply(status, body, seen=seen, no_memory=_is_memory(result))
        label = oip.Label(order.model, order.ref.version, SLOT_NAMES[slot])
        length, body = oip.answer(label, result, seen.flags, request)
        return _Reply(200, body, length, seen)

    def _canary(self, frame: Frame) -> None:
        assert self._predictor is not None
        status = 200
        try:
            self._predictor.model.run(self._predictor.canary())
        except EngineError:
            status = 500
        self._send(FrameKind.ANSWER, frame.seq, wire.pack_answer(status, -1, _NOT_COUNTED))

    def _send(self, kind: FrameKind, seq: int, meta: bytes, body: bytes = b"") -> None:
        head = wire.head(kind, seq, meta, len(body))
        if len(body) < CHUNK_BYTES:
            self._channel.sendall(head + body)
        else:
            self._channel.sendall(head)
            self._channel.sendall(body)

    def _end_for_memory(self) -> NoReturn:
        sys.stderr.write("out of memory\n")
        sys.stderr.flush()
        os._exit(EXIT_MEMORY)


def _refusal(exc: EdgekitError | MemoryError) -> wire.Refusal:
    if isinstance(exc, MemoryError) or _is_memory(exc):
        return wire.Refusal(error="ResourceError", message="out of memory while loading")
    kinds = (UnsuitableError, ResourceError, BadInputError)
    name = next((kind.__name__ for kind in kinds if isinstance(exc, kind)), "UnsuitableError")
    return wire.Refusal(error=name, message=exc.message, hint=exc.hint)


def _is_memory(exc: EdgekitError) -> bool:
    """Engines tell a failed allocation only in words (onnxruntime: bfc_arena.cc)."""
    text = exc.message.lower()
    return "bad_alloc" in text or "failed to allocate memory" in text


def _limit_memory(bytes_max: int) -> None:
    """Bound private writable memory (Linux 4.7 and newer) from here on."""
    limit = (process_facts.data_bytes() or 0) + bytes_max
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _end_with_agent(channel: socket.socket) -> NoReturn:
    """Waits beside a running inference: a hung model must not outlive the agent."""
    poll = select.poll()
    poll.register(channel, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> None:
    """Serve the socket that the only argument names."""
    # Ctrl-C and a service manager's stop reach the whole group; the agent drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    np.seterr(all="ignore")  # what overflows becomes infinite, and the guard says so
    channel = launch.channel(sys.argv[1])
    threading.Thread(target=_end_with_agent, args=(channel,), daemon=True).start()
    engines.preload()  # a worker started ahead of its order has the library in memory
    Worker(channel).run()


if __name__ == "__main__":
    main()
