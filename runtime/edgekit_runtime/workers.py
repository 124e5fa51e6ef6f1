"""Starts workers and loads bundles into them: the agent's `Host`.

The agent never loads a model itself, not for a self-test either. A worker is one process, or one
container when the slot is an image, on one private socket; nothing is shared, so that killing it is
a complete unload.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic, sleep

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import BadInputError, BugError, EdgekitError, ResourceError
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.engine.ports import EngineAwayError
from edgekit_runtime import supervision, wire
from edgekit_runtime.errors import UnsuitableError, WorkerEndedError
from edgekit_runtime.launch import Launcher, WorkerHandle
from edgekit_runtime.supervision import Ending, EndKind
from edgekit_runtime.wire import FrameKind
from edgekit_runtime.worker_model import WorkerModel

LOAD_S_MAX = 300.0  # compiling an engine on a small board takes minutes; longer is a hang
GRACE_S = 5.0  # between hanging up on a worker and killing it
_ERRORS: dict[str, type[EdgekitError]] = {
    kind.__name__: kind for kind in (UnsuitableError, ResourceError, BadInputError)
}


class WorkerProcess:
    """A started worker. Ends when the socket is closed."""

    def __init__(self) -> None:
        """Start it; the library it needs is loaded while the agent goes on.

        Raises:
            ResourceError: no process or socket can be made.
        """
        try:
            self.channel, theirs = socket.socketpair()
            with theirs:
                # Agent and worker run the same code from the same environment.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "edgekit_runtime.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        except OSError as exc:
            raise ResourceError(f"cannot start a worker process: {exc.strerror}") from exc
        self.pid = self._process.pid
        self._hung_up_at: float | None = None

    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        return None if code is None else supervision.describe_exit(code)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def hang_up(self) -> None:
        """Close our end: it finishes nothing more and exits."""
        self._hung_up_at = monotonic()
        self.channel.close()

    def reap(self, *, now: float) -> bool:
        """Whether it is gone; killed when it does not go by itself."""
        if self._hung_up_at is not None and now - self._hung_up_at > GRACE_S:
            self._process.kill()
        return self._process.poll() is not None

    def wait(self, timeout_s: float = GRACE_S) -> Ending:
        """Block until it has ended; kills it when that takes longer."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return supervision.describe_exit(code)


class WorkerHost:
    """`edgekit_runtime.ports.Host` over worker processes. Thread-safe."""

    def __init__(
        self,
        root: Path,
        *,
        threads: int,
        body_bytes_max: int,
        containers: Launcher | None = None,
    ) -> None:
        self._root = root
        self._containers = containers
        self._threads = threads
        self._body_bytes_max = body_bytes_max
        self._lock = threading.Lock()
        self._spare: WorkerProcess | None = None
        self._started: list[WorkerHandle] = []

    def prepare(self) -> None:
        """Start a worker ahead of its first bundle, so that it imports while the agent does.

        Raises:
            ResourceError: no process can be made.
        """
        with self._lock:
            self._spare = WorkerProcess()
            self._started.append(self._spare)

    def load(self, model: str, ref: SlotRef, policy: Policy, *, tested: bool) -> WorkerModel:
        """See `Host.load`."""
        process, root = self._start(model, ref, policy)
        order = wire.Order(
            root=root,
            model=model,
            ref=ref,
            threads=self._threads,
            tested=tested,
            memory_bytes_max=policy.worker_bytes_max,
            body_bytes_max=self._body_bytes_max,
        )
        try:
            facts = _load(process, order, LOAD_S_MAX)
        except EdgekitError:
            process.hang_up()
            raise
        return WorkerModel(process, facts, policy)

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

    def _start(self, model: str, ref: SlotRef, policy: Policy) -> tuple[WorkerHandle, str]:
        """A worker for ``ref``, and where its bundle lies as that worker sees it."""
        if ref.image is None:
            return self._take(), str(self._root)
        if self._containers is None:
            raise UnsuitableError(
                f"{model}: is an image, and no container engine is configured here",
                hint="[containers] engine in the agent's configuration",
            )
        worker = self._containers.start(model, ref, policy)
        with self._lock:
            self._started.append(worker)
        return worker, self._containers.root

    def _take(self) -> WorkerProcess:
        with self._lock:
            spare, self._spare = self._spare, None
            if spare is not None and spare.ending() is None:
                return spare
            fresh = WorkerProcess()
            self._started.append(fresh)
            return fresh


def _load(process: WorkerHandle, order: wire.Order, timeout_s: float) -> wire.Facts:
    name = f"{order.model} {digests.short(order.ref.digest)}"
    channel, end = process.channel, monotonic() + timeout_s
    reader = wire.Reader()
    try:
        channel.sendall(wire.head(FrameKind.LOAD, 0, msgspec.json.encode(order), 0))
        while True:
            channel.settimeout(max(0.001, end - monotonic()))
            count = channel.recv_into(reader.room())
            if not count:
                raise _ended(process, name)
            frames = reader.received(count)
            if frames:
                break
    except TimeoutError as exc:
        process.kill()
        ending = Ending(EndKind.STUCK, f"it was not loaded within {timeout_s:g} s")
        raise WorkerEndedError(f"{name}: {ending.reason}", ending) from exc
    except OSError as exc:
        raise _ended(process, name) from exc
    frame = frames[0]
    if frame.kind == FrameKind.LOADED:
        return msgspec.json.decode(frame.meta, type=wire.Facts)
    if frame.kind != FrameKind.FAILED:
        raise BugError(f"{name}: worker answered {frame.kind} to an order")
    refusal = msgspec.json.decode(frame.meta, type=wire.Refusal)
    raise _ERRORS[refusal.error](refusal.message, hint=refusal.hint)


def _ended(process: WorkerHandle, name: str) -> EdgekitError:
    ending = process.wait()
    if ending.kind is EndKind.OUTSIDE:
        return EngineAwayError(f"{name}: while loading {ending.reason}")
    return WorkerEndedError(f"{name}: while loading {ending.reason}", ending)
