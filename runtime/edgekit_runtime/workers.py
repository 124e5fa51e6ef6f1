"""Starts workers and loads bundles into them: the agent's `Host`.

The agent never loads a model itself, not for a self-test either. A worker is one process, or one
container when the slot is an image, on one private socket. It shares a page of figures and the
rings it counts in; killing it is a complete unload.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from time import monotonic, sleep

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import BadInputError, BugError, EdgekitError, ResourceError
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.engine.ports import EngineAwayError
from edgekit_runtime import shares, wire, worker_process
from edgekit_runtime.board import Board
from edgekit_runtime.errors import UnsuitableError, WorkerEndedError
from edgekit_runtime.head_start import Begun
from edgekit_runtime.launch import Launcher, WorkerHandle
from edgekit_runtime.ports import Replay
from edgekit_runtime.supervision import Ending, EndKind
from edgekit_runtime.wire import Channel, Frame, FrameKind
from edgekit_runtime.worker_model import WorkerModel
from edgekit_runtime.worker_process import GRACE_S, WorkerProcess

LOAD_S_MAX = 300.0  # compiling an engine on a small board takes minutes; longer is a hang
_ERRORS: dict[str, type[EdgekitError]] = {
    kind.__name__: kind for kind in (UnsuitableError, ResourceError, BadInputError)
}


class WorkerLimits(msgspec.Struct, frozen=True):
    """What each worker takes at once."""

    threads: int
    cores: tuple[int, ...]  # that workers run on; (): all
    body_bytes_max: int
    bodies_bytes_max: int
    requests_max: int
    connections_max: int
    client_s_max: float
    socket: str = ""  # of the agent, for models that are fed by others


class _Loading:
    """A worker that was given its order."""

    def __init__(self, process: WorkerHandle, order: wire.Order) -> None:
        """Send it.

        Raises:
            ResourceError: no memory for its board.
        """
        self.process, self.order = process, order
        self.channel = Channel(process.channel)
        self.name = f"{order.model} {digests.short(order.ref.digest)}"
        process.say_as(self.name)
        try:
            descriptor = Board.create(order.connections_max)
        except OSError as exc:
            raise ResourceError(f"{self.name}: no memory for a worker: {exc.strerror}") from exc
        self.board = Board(descriptor, order.connections_max)
        load = Frame(FrameKind.LOAD, msgspec.json.encode(order), descriptors=(descriptor,))
        with contextlib.suppress(OSError):  # that it is gone is noticed by whoever waits for it
            self.channel.send(load)
        os.close(descriptor)

    def wait(self, timeout_s: float) -> wire.Facts:
        """What it loaded. Raises like `Host.load`."""
        channel, end = self.channel, monotonic() + timeout_s
        try:
            while True:
                channel.socket.settimeout(max(0.001, end - monotonic()))
                frames = channel.receive()
                if frames is None:
                    raise self._ended()
                if frames:
                    break
        except TimeoutError as exc:
            self.process.kill()
            ending = Ending(EndKind.STUCK, f"it was not loaded within {timeout_s:g} s")
            raise WorkerEndedError(f"{self.name}: {ending.reason}", ending) from exc
        except OSError as exc:
            raise self._ended() from exc
        frame = frames[0]
        if frame.kind == FrameKind.LOADED:
            return msgspec.json.decode(frame.meta, type=wire.Facts)
        if frame.kind != FrameKind.FAILED:
            raise BugError(f"{self.name}: worker answered {frame.kind} to an order")
        refusal = msgspec.json.decode(frame.meta, type=wire.Refusal)
        raise _ERRORS[refusal.error](refusal.message, hint=refusal.hint)

    def close(self) -> None:
        """Hang up."""
        self.channel.close()
        self.process.hang_up()

    def _ended(self) -> EdgekitError:
        ending = self.process.wait()
        if ending.kind is EndKind.OUTSIDE:
            return EngineAwayError(f"{self.name}: while loading {ending.reason}")
        return WorkerEndedError(f"{self.name}: while loading {ending.story}", ending)


class WorkerHost:
    """`edgekit_runtime.ports.Host` over worker processes and containers. Thread-safe."""

    def __init__(
        self, root: Path, limits: WorkerLimits, *, containers: Launcher | None = None
    ) -> None:
        self._root = root
        self._limits = limits
        self._containers = containers
        self._lock = threading.Lock()
        self._ahead: _Loading | None = None
        self._started: list[WorkerHandle] = []

    def order_ahead(self, begun: Begun, model: str, ref: SlotRef, policy: Policy) -> None:
        """Have ``begun`` load what `load` will be asked for first; it does so already."""
        process = self._held(WorkerProcess(begun.pid, begun.channel, begun.said))
        order = self._order(model, ref, policy, tested=not policy.overlap)  # as `load` is asked
        try:
            self._ahead = _Loading(process, order)
        except ResourceError:  # `load` will find that out by itself, and somebody hears of it
            process.kill()

    def load(self, model: str, ref: SlotRef, policy: Policy, *, tested: bool) -> WorkerModel:
        """See `Host.load`."""
        return self._load(model, ref, policy, tested=tested, quiet=tested)

    def _load(
        self, model: str, ref: SlotRef, policy: Policy, *, tested: bool, quiet: bool
    ) -> WorkerModel:
        order = self._order(model, ref, policy, tested=tested)
        with self._lock:
            ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.order != order:
            ahead.close()
            ahead = None
        if not policy.overlap:
            self._settle()
        loading = ahead or _Loading(self._start(model, ref, policy, quiet=quiet), order)
        try:
            facts = loading.wait(LOAD_S_MAX)
        except EdgekitError:
            loading.close()
            raise
        return WorkerModel(loading.process, loading.channel, loading.board, facts, policy)

    def replay(self, model: str, ref: SlotRef, policy: Policy, replay: Replay) -> None:
        """See `Host.replay`."""
        loaded = self._load(model, ref, policy, tested=False, quiet=True)
        order = wire.Following(abs=replay.abs, rel=replay.rel, once=True)
        descriptors = (replay.samples, replay.region.descriptor)
        try:
            loaded.replay(
                Frame(FrameKind.FOLLOW, msgspec.json.encode(order), descriptors=descriptors)
            )
        finally:
            loaded.close()

    def _settle(self) -> None:
        """Wait for workers that were told to end: there is no memory for them and another."""
        with self._lock:
            leaving = [worker for worker in self._started if worker.leaving]
        for worker in leaving:
            worker.wait(GRACE_S)

    def reap(self) -> None:
        """Collect workers that have ended; called now and then."""
        now = monotonic()
        with self._lock:
            self._started = [worker for worker in self._started if not worker.reap(now=now)]

    def close(self) -> None:
        """End every worker and wait for it."""
        with self._lock:
            started, self._started = self._started, []
        for worker in started:
            worker.kill()
        end = monotonic() + GRACE_S
        for worker in started:
            worker.wait()
            while not worker.reap(now=monotonic()) and monotonic() < end:
                sleep(0.02)  # its container is being removed
            worker.channel.close()

    def _order(self, model: str, ref: SlotRef, policy: Policy, *, tested: bool) -> wire.Order:
        share = shares.of(policy, self._limits.threads, self._limits.cores)
        limits, inside = self._limits, self._containers if ref.image is not None else None
        return wire.Order(
            root=inside.root if inside is not None else str(self._root),
            model=model,
            ref=ref,
            threads=share.threads,
            cores=share.cores,
            tested=tested,
            memory_bytes_max=share.memory_bytes_max,
            body_bytes_max=limits.body_bytes_max,
            bodies_bytes_max=limits.bodies_bytes_max,
            requests_max=limits.requests_max,
            connections_max=limits.connections_max,
            client_s_max=limits.client_s_max,
            socket=limits.socket if ref.image is None else "",
        )

    def _start(self, model: str, ref: SlotRef, policy: Policy, *, quiet: bool) -> WorkerHandle:
        if ref.image is None:
            return self._held(worker_process.start(quiet=quiet))
        if self._containers is None:
            raise UnsuitableError(
                f"{model}: is an image, and no container engine is configured here",
                hint="[containers] engine in the agent's configuration",
            )
        return self._held(self._containers.start(model, ref, policy))

    def _held(self, worker: WorkerHandle) -> WorkerHandle:
        with self._lock:
            self._started.append(worker)
        return worker
