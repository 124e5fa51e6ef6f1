"""A bundle loaded in a worker: the agent's end of its socket.

Requests are sent from the event loop, which also reads the answers; `failure` and `close` may be
used by any thread. Nothing here waits: a worker that does not answer is killed by `check`, and what
it had not answered fails with 503 and a Retry-After.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.contract import Contract
from edgekit.contracts.messages import Policy
from edgekit_runtime import process_facts, supervision, wire
from edgekit_runtime.errors import NotServingError, RetiredError
from edgekit_runtime.supervision import Ending, EndKind
from edgekit_runtime.wire import Answer, FrameKind

if TYPE_CHECKING:
    from edgekit_runtime.launch import WorkerHandle

LATENCIES_MAX = 512  # of the newest requests, for the p99
CANARY_S = 10.0  # a worker without traffic for so long shows that it still computes
RETRY_S = 1.0
BUFFERS_MAX = 64  # handed to one system call
EXIT_S = 0.5  # a process that closed its socket has this long to end before it is killed


class WorkerModel:
    """`edgekit_runtime.ports.Loaded` in another process."""

    def __init__(self, process: WorkerHandle, facts: wire.Facts, policy: Policy) -> None:
        self.manifest: BundleManifest = facts.manifest
        self.contract: Contract = facts.contract
        self.pid = process.pid
        self._process = process
        self._policy = policy
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader = wire.Reader()
        self._unsent: deque[memoryview] = deque()
        self._waiting: dict[int, tuple[asyncio.Future[Answer], float]] = {}
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES_MAX)
        self._seq = 0
        self._ending: Ending | None = None
        self._closing = False
        self._shut = False
        self._proven_at = monotonic()  # when it last showed that it computes

    @property
    def failure(self) -> Ending | None:
        """See `Loaded.failure`."""
        if self._ending is None and not self._shut:
            return self._process.ending()
        return self._ending

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered."""
        return len(self._waiting)

    def close(self) -> None:
        """See `Loaded.close`."""
        with self._lock:
            self._closing = True
            if self._loop is None:
                self._shut_down()
            else:
                self._loop.call_soon_threadsafe(self._close_when_idle)

    # --- event loop ----------------------------------------------------------------------------

    async def ask(self, slot: int, json_length: int, body: bytes) -> Answer:
        """Send one request and wait for its answer.

        Raises:
            RetiredError: it no longer takes requests: another bundle serves now.
            NotServingError: the worker ended before it answered.
        """
        return await self._send(FrameKind.INFER, wire.pack_ask(json_length, slot), body)

    def proven(self, now: float) -> bool:
        """Whether it showed lately, by an inference or a canary, that it computes."""
        return now - self._proven_at < 2 * CANARY_S + self._policy.stuck_s_min

    def check(self) -> None:
        """Kill the worker when it is stuck or too large; ask an idle one for a sign of life."""
        if self._ending is not None or self._shut:
            return
        now, limit = monotonic(), self._policy.worker_bytes_max
        oldest = min((sent for _, sent in self._waiting.values()), default=now)
        ended = self._process.ending()
        if ended is not None:
            self._fail(ended)
            return
        size = process_facts.rss_bytes(self.pid) if limit else None
        if size is not None and size > limit:
            text = f"its worker used {size} bytes of memory, allowed {limit}"
            self._fail(Ending(EndKind.MEMORY, text))
        elif now - oldest > self._policy.stuck_s_min:
            stuck_s = supervision.stuck_limit_s(self._policy.stuck_s_min, self._latencies_s)
            if now - oldest > stuck_s:
                text = f"an inference did not end within {stuck_s:g} s"
                self._fail(Ending(EndKind.STUCK, text))
        elif not self._waiting and now - self._proven_at > CANARY_S:
            self._canary()

    def _canary(self) -> None:
        asked = asyncio.ensure_future(self._send(FrameKind.CANARY, b"", b""))
        asked.add_done_callback(_forget)

    def _send(self, kind: FrameKind, meta: bytes, body: bytes) -> asyncio.Future[Answer]:
        with self._lock:
            if self._shut or self._ending is not None:
                raise RetiredError("this worker takes no more requests")
            if self._loop is None:
                self._attach()
        assert self._loop is not None
        self._seq += 1
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[self._seq] = future, monotonic()
        self._write(wire.head(kind, self._seq, meta, len(body)), body)
        return future

    def _attach(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process.channel.setblocking(False)
        self._loop.add_reader(self._process.channel.fileno(), self._readable)

    def _write(self, head: bytes, body: bytes) -> None:
        idle = not self._unsent
        self._unsent.append(memoryview(head))
        if body:
            self._unsent.append(memoryview(body))
        if idle:
            self._writable()
            if self._unsent and self._loop is not None:
                self._loop.add_writer(self._process.channel.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._process.channel.sendmsg(list(islice(self._unsent, BUFFERS_MAX)))
        except BlockingIOError:
            return
        except OSError:
            self._lost()
            return
        while self._unsent and sent >= len(self._unsent[0]):
            sent -= len(self._unsent.popleft())
        if sent:
            self._unsent[0] = self._unsent[0][sent:]
        if not self._unsent and self._loop is not None:
            self._loop.remove_writer(self._process.channel.fileno())

    def _readable(self) -> None:
        try:
            count = self._process.channel.recv_into(self._reader.room())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lost()
            return
        for frame in self._reader.received(count):
            found = self._waiting.pop(frame.seq, None)
            if found is None:
                continue
            future, sent = found
            self._proven_at = monotonic()
            self._latencies_s.append(self._proven_at - sent)
            if not future.done():
                future.set_result(wire.unpack_answer(frame))
        if self._closing:
            self._close_when_idle()

    def _close_when_idle(self) -> None:
        if not self._waiting and not self._shut:
            self._shut_down()

    def _lost(self) -> None:
        """The worker hung up: it is gone, or about to be."""
        self._fail(self._process.wait(EXIT_S))

    def _fail(self, ending: Ending) -> None:
        self._ending = ending
        self._process.kill()
        self._unsent.clear()
        waiting, self._waiting = self._waiting, {}
        self._shut_down()
        for future, _ in waiting.values():
            if not future.done():
                future.set_exception(
                    NotServingError(f"not answered: {ending.reason}", retry_after_s=RETRY_S)
                )

    def _shut_down(self) -> None:
        with self._lock:
            if self._shut:
                return
            self._shut = True
            if self._loop is not None:
                number = self._process.channel.fileno()
                self._loop.remove_reader(number)
                self._loop.remove_writer(number)
            self._process.hang_up()


def _forget(asked: asyncio.Future[Answer]) -> None:
    """A canary's answer is its time; that it failed is known from the worker's end."""
    if not asked.cancelled():
        asked.exception()
