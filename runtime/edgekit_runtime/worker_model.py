"""A bundle loaded in a worker: the agent's end of its socket.

Loaded by a job thread; from `attach` on it belongs to the front's thread. `failure` and `close`
may be used by any thread. Nothing here waits for a worker: what it does stands on its board, and
one that hangs or grows is killed by `check`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING

from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.contract import Contract
from edgekit.contracts.messages import Policy
from edgekit.contracts.reference import Reference
from edgekit.contracts.shadow import Expectation
from edgekit_runtime import process_facts, supervision
from edgekit_runtime.board import Board
from edgekit_runtime.errors import WorkerEndedError
from edgekit_runtime.loop import READ, WRITE, Loop
from edgekit_runtime.supervision import Ending, EndKind
from edgekit_runtime.wire import Channel, Facts, Frame, FrameKind

if TYPE_CHECKING:
    from edgekit_runtime.launch import WorkerHandle
    from edgekit_runtime.region import Region

LATENCIES_MAX = 512  # of the newest requests, for the p99
CANARY_S = 10.0  # a worker without traffic for so long shows that it still computes
REPLAY_LOOK_S = 0.2  # between looks at a worker that replays
GONE_LOOK_S = 0.01  # between looks at a worker that is to end
EXIT_S = 0.5  # a process that closed its socket has this long to end before it is killed
OnFrame = Callable[["WorkerModel", Frame], None]
OnEnd = Callable[["WorkerModel", Ending], None]


class WorkerModel:
    """`edgekit_runtime.ports.Loaded` in another process."""

    def __init__(
        self, process: WorkerHandle, channel: Channel, board: Board, facts: Facts, policy: Policy
    ) -> None:
        self.manifest: BundleManifest = facts.manifest
        self.contract: Contract = facts.contract
        self.reference: Reference | None = facts.reference
        self.expectation: Expectation | None = facts.expectation
        self.pid = process.pid
        self.board = board
        self.region: Region | None = None  # where it counts now
        self._process = process
        self._channel = channel
        self._policy = policy
        self._lock = threading.Lock()
        self._loop: Loop | None = None
        self._on_frame: OnFrame | None = None
        self._on_end: OnEnd | None = None
        self._ending: Ending | None = None
        self._shut = False
        self._begun = monotonic()
        self._asked_at: float | None = None  # for a sign of life

    @property
    def failure(self) -> Ending | None:
        """See `Loaded.failure`."""
        if self._ending is None and not self._shut:
            return self._process.ending()
        return self._ending

    def gone(self, timeout_s: float) -> bool:
        """Whether its process has ended, within ``timeout_s``; for a job's thread."""
        end = monotonic() + timeout_s
        while self._process.ending() is None:
            if monotonic() > end:
                return False
            sleep(GONE_LOOK_S)
        return True

    def close(self) -> None:
        """See `Loaded.close`. What is attached is first given up by the front."""
        with self._lock:
            if self._shut:
                return
            self._shut = True
            if self._loop is not None:
                self._loop.forget(self._channel.socket.fileno())
            self._channel.close()
            self._process.hang_up()

    # --- the front's thread --------------------------------------------------------------------

    def attach(self, loop: Loop, on_frame: OnFrame, on_end: OnEnd) -> None:
        """Have ``loop`` read what the worker says; again, to have others told."""
        with self._lock:
            if self._shut:
                return
            attached = self._loop is not None
            self._loop, self._on_frame, self._on_end = loop, on_frame, on_end
            if attached:
                return
            channel = self._channel
            channel.socket.setblocking(False)
            loop.watch(channel.socket.fileno(), READ, self._ready)

    def send(self, frame: Frame) -> None:
        """Say something; a worker that is gone is noticed by reading."""
        if self._shut or self._loop is None:
            return
        channel = self._channel
        try:
            channel.send(frame)
        except OSError:
            return
        if channel.unsent:
            self._loop.change(channel.socket.fileno(), READ | WRITE)

    def say_as(self, tag: str) -> None:
        """What it writes to stderr is logged under ``tag`` from now on."""
        self._process.say_as(tag)

    def replay(self, frame: Frame) -> None:
        """Have it go through collected samples; for a job's thread, before `attach`.

        Raises:
            WorkerEndedError: it ended, or an inference did.
        """
        channel, name = self._channel, self.manifest.model
        channel.socket.settimeout(REPLAY_LOOK_S)
        try:
            channel.send(frame)
            while True:
                try:
                    frames = channel.receive()
                except TimeoutError:
                    self.check()
                    frames = []
                if frames is None or self._ending is not None:
                    ending = self._ending or self._process.wait(EXIT_S)
                    raise WorkerEndedError(f"{name}: {ending.reason}", ending)
                if frames:
                    return
        except OSError as exc:
            ending = self._ending or self._process.wait(EXIT_S)
            raise WorkerEndedError(f"{name}: {ending.reason}", ending) from exc

    def proven(self, now: float) -> bool:
        """Whether it showed lately, by an inference or a canary, that it computes."""
        shown = max(self.board.last_ns / 1e9, self._begun)
        return now - shown < 2 * CANARY_S + self._policy.stuck_s_min

    def check(self) -> None:
        """Kill the worker when it is stuck or too large; ask an idle one for a sign of life."""
        if self._ending is not None or self._shut:
            return
        limit = self._policy.worker_bytes_max
        ended = self._process.ending()
        if ended is not None:
            self._fail(ended)
            return
        size = process_facts.rss_bytes(self.pid) if limit and self.pid else None
        if size is not None and size > limit:
            text = f"its worker used {size} bytes of memory, allowed {limit}"
            self._fail(Ending(EndKind.MEMORY, text))
            return
        now, since_ns = monotonic(), self.board.busy_since_ns
        if since_ns:
            self._check_stuck(now - since_ns / 1e9)
        else:
            self._check_idle(now)

    def _check_idle(self, now: float) -> None:
        """Between inferences it reads what we say, and a canary is an inference."""
        shown = max(self.board.last_ns / 1e9, self._begun)
        if now - shown <= CANARY_S:
            return
        if self._asked_at is None or self._asked_at < shown:
            self._asked_at = now
            self.send(Frame(FrameKind.CANARY))
        elif now - self._asked_at > max(CANARY_S, self._policy.stuck_s_min):
            self._fail(Ending(EndKind.STUCK, "its worker does not react"))

    def _check_stuck(self, busy_s: float) -> None:
        least = self._policy.stuck_s_min
        if busy_s <= least:
            return
        latencies_s = self.region.latencies_s(LATENCIES_MAX) if self.region is not None else []
        stuck_s = supervision.stuck_limit_s(least, latencies_s)
        if busy_s > stuck_s:
            text = f"an inference did not end within {stuck_s:g} s"
            self._fail(Ending(EndKind.STUCK, text))

    def _ready(self, events: int) -> None:
        channel = self._channel
        try:
            if events & WRITE:
                channel.flush()
                if not channel.unsent and self._loop is not None:
                    self._loop.change(channel.socket.fileno(), READ)
            frames = channel.receive() if events & ~WRITE else []
        except BlockingIOError:
            return
        except OSError:
            frames = None
        if frames is None:  # it is gone, or about to be
            self._fail(self._process.wait(EXIT_S))
            return
        assert self._on_frame is not None
        for frame in frames:
            self._on_frame(self, frame)

    def _fail(self, ending: Ending) -> None:
        """What it held is only taken over when it cannot act any more."""
        self._ending = ending
        self._process.kill()
        self.close()  # it ends by itself, too, when its agent hangs up
        self._process.wait(EXIT_S)
        if self._on_end is not None:
            self._on_end(self, ending)
