"""Models inside an application: the application loads them, the agent says which.

::

    from edgekit_runtime import Session

    with Session.open("meter", state_dir="/var/lib/edgekit") as session:
        result = session.infer({"power": rows}, request_id="r-17", deadline_s=0.1)

The model runs in this process, behind the same guard and the same counting as in a worker. Before
each call the agent's socket is looked at: what it made active meanwhile is loaded and takes over
between two calls. Without an agent the session goes on with what it has, and counts in a ring that
the next agent finds. `docs/embedding.md` says what is promised and what is not.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType

import msgspec
from typing_extensions import Self

from edgekit.contracts.composition import Link
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import EdgekitError, ResourceError, UnavailableError, UsageError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import composition, errors, fitness, session, tether, wire
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.errors import DeadlineError, NotServingError
from edgekit_runtime.guard import Flags
from edgekit_runtime.ports import Array
from edgekit_runtime.region import Region
from edgekit_runtime.session import Place, Result
from edgekit_runtime.tether import Tether, discard
from edgekit_runtime.wire import Frame, FrameKind

OPEN_S = 30.0  # an agent that starts has its own model to load first
AGAIN_S = 30.0  # between attempts to load what could not be loaded
Request = Mapping[str, Array] | tuple[str, Mapping[str, Array]]
log = logging.getLogger(__name__)


class _Held(msgspec.Struct, frozen=True):
    """What runs, and where it counts."""

    content: str
    core: session.Session

    def release(self) -> None:
        """Unmap the regions: the agent may dispose of them and of the bundle."""
        self.core.place.journal.close()


class Session:
    """One model in this process. Safe to share between threads: calls are answered in turn."""

    def __init__(self, model: str, path: Path, *, threads: int | None) -> None:
        """Use `open`."""
        self.model = model
        self._path = path
        self._threads = threads
        self._sources: dict[str, Session] = {}  # of models that feed this one
        self._lock = threading.Lock()
        self._clock = SystemClock()
        self._held: _Held | None = None
        self._absent: wire.Refusal | None = None
        self._unloaded: tuple[Frame, wire.Active] | None = None  # to be tried again
        self._again_at = 0.0
        self._closed = False
        self._tether = Tether(path, wire.Hello(model=model, session=secrets.token_hex(8)))
        # Also when the interpreter ends without `close`: only an end that is no end is a crash.
        self._closer = weakref.finalize(self, self._tether.close)

    @classmethod
    def open(
        cls,
        model: str,
        *,
        state_dir: Path | str | None = None,
        config: Path | str | None = None,
        socket: Path | str | None = None,
        threads: int | None = None,
        timeout_s: float = OPEN_S,
    ) -> Session:
        """Load what the device has active of ``model``.

        Args:
            model: its name in the desired state.
            state_dir: the agent's state folder.
            config: or the agent's configuration.
            socket: or the path of its socket for applications.
            threads: of the engine; as the agent is configured when None.
            timeout_s: for the agent to say what to run.

        Raises:
            UsageError: not exactly one of ``state_dir``, ``config`` and ``socket`` is given.
            UnavailableError: no agent answers, or not in time.
            NotServingError: nothing is active, or it is an image.
            BadInputError: the bundle was altered, or cannot run here.
            ResourceError: no memory for it.
        """
        found = cls(model, tether.socket_path(state_dir, config, socket), threads=threads)
        try:
            found._tether.connect()
            found._heed(found._tether.wait(timeout_s), first=True)
        except BaseException:
            found.close()
            raise
        return found

    def infer(
        self,
        inputs: Mapping[str, Array],
        *,
        request_id: str | None = None,
        deadline_s: float | None = None,
        taken_at: float | None = None,
    ) -> Result:
        """Answer one request and count it.

        Args:
            inputs: by name, as the contract declares them; any number of rows, also where the model
                has a fixed batch size.
            request_id: counted once, however often it is sent; found again in telemetry and logs.
            deadline_s: from now. What is late is not answered.
            taken_at: when the inputs were measured, Unix seconds; for contracts that limit it.

        Raises:
            GuardError: an input breaks the contract; counted as a violation.
            EngineError: the engine failed; counted as an error.
            DeadlineError: the time is over; see there what was counted.
            NotServingError: the device has nothing active any more.
            UsageError: the session is closed, or belongs to another process.
            MemoryError: an allocation failed; not counted.
        """
        until = None if deadline_s is None else monotonic() + deadline_s
        return self.infer_until(inputs, request_id, until, taken_at)

    def infer_until(
        self,
        inputs: Mapping[str, Array],
        request_id: str | None,
        until: float | None,
        taken_at: float | None = None,
    ) -> Result:
        """`infer` with a deadline on the monotonic clock. Raises like it."""
        self._check()
        left_s = -1.0 if until is None else max(0.0, until - monotonic())
        if not self._lock.acquire(timeout=left_s):
            raise DeadlineError(f"{self.model}: other calls took all of the time")
        try:
            self._check()
            self._follow()
            held = self._held
            if held is None:
                raise self._nothing()
            if until is not None and monotonic() >= until:
                raise DeadlineError(f"{self.model}: the time was over before the model was asked")
            result = self._ask(held.core, inputs, request_id, until, taken_at)
        finally:
            self._lock.release()
        if until is not None and monotonic() > until:
            text = f"{self.model}: the answer came {monotonic() - until:.3f} s too late"
            raise DeadlineError(text, late=result)
        return result

    def infer_many(
        self,
        requests: Iterable[Request],
        *,
        deadline_s: float | None = None,
        refused: Callable[[int, EdgekitError], None] | None = None,
    ) -> Iterator[Result]:
        """Answers in the order of ``requests``, made while they are taken.

        Args:
            requests: inputs, or pairs of a request id and inputs.
            deadline_s: for each of them.
            refused: told of those that get no answer, by their position, and the others go on;
                without it the first one ends it all.

        Raises:
            EdgekitError: like `infer`, without ``refused``.
        """
        for position, request in enumerate(requests):
            request_id, inputs = request if isinstance(request, tuple) else (None, request)
            try:
                result = self.infer(inputs, request_id=request_id, deadline_s=deadline_s)
            except EdgekitError as exc:
                if refused is None:
                    raise
                refused(position, exc)
            else:
                yield result

    def follow(self) -> None:
        """Take over what the device has made active meanwhile; every call does this first.

        For applications with idle moments: loading takes as long as it takes.
        """
        self._check()
        with self._lock:
            self._check()
            self._follow()

    @property
    def contract(self) -> Contract:
        """What the bundle that runs takes and answers. Raises `NotServingError`."""
        held = self._held
        if held is None:
            raise self._nothing()
        return held.core.predictor.contract

    @property
    def connected(self) -> bool:
        """Whether an agent listens; without one the session goes on alone."""
        return self._tether.connected

    def close(self) -> None:
        """Say goodbye and unload. Does nothing the second time."""
        with self._lock:
            self._closed = True
            self._closer()
            self._release()
            self._keep_sources(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- one call ------------------------------------------------------------------------------

    def _ask(
        self,
        core: session.Session,
        inputs: Mapping[str, Array],
        request_id: str | None,
        until: float | None,
        taken_at: float | None,
    ) -> Result:
        stale = Flags.STALE if self._unloaded is not None else Flags.NONE
        sources: dict[str, str] = {}
        if core.place.links:
            own = {spec.name for spec in core.predictor.contract.inputs}
            ask = partial(self._ask_source, request_id, until, taken_at)
            inputs, sources = composition.feed(core.place.links, own, inputs, ask)
        try:
            result = core.infer(
                inputs, request_id=request_id, taken_at=taken_at, rows=True, also=stale
            )
            return msgspec.structs.replace(result, sources=sources) if sources else result
        except EdgekitError as exc:
            version = core.place.version
            log.warning(
                "%s %s, request %s: %s", self.model, version, request_id or "-", exc.message
            )
            raise

    def _ask_source(
        self,
        request_id: str | None,
        until: float | None,
        taken_at: float | None,
        model: str,
        inputs: Mapping[str, Array],
        _names: Sequence[str],
    ) -> tuple[Mapping[str, Array], str]:
        """Another model feeds this one: it runs in a session of its own."""
        if model not in self._sources:
            wait_s = OPEN_S if until is None else max(0.0, until - monotonic())
            self._sources[model] = Session.open(
                model, socket=self._path, threads=self._threads, timeout_s=wait_s
            )
        found = self._sources[model].infer_until(inputs, request_id, until, taken_at)
        return found.outputs, found.version

    def _check(self) -> None:
        if self._closed:
            raise UsageError("the session is closed", hint="open another one")
        if self._tether.abandoned:
            raise UsageError(
                f"the session belongs to process {self._tether.pid}, this is {os.getpid()}",
                hint="open one in every process, after it was forked",
            )

    def _nothing(self) -> EdgekitError:
        absent = self._absent
        text = absent.message if absent is not None else f"{self.model}: nothing is loaded"
        return NotServingError(text, hint="edgekit-agent status says what the device has")

    # --- following the agent -------------------------------------------------------------------

    def _follow(self) -> None:
        news = self._tether.news()
        if news is not None:
            self._heed(news, first=False)
        elif self._unloaded is not None and monotonic() >= self._again_at:
            frame, active = self._unloaded
            self._unloaded = None
            self._adopt(frame, active, first=False)

    def _heed(self, frame: Frame, *, first: bool) -> None:
        if self._unloaded is not None:
            discard(self._unloaded[0])  # the agent wants something else by now
            self._unloaded = None
        if frame.kind == FrameKind.FAILED:
            refusal = msgspec.json.decode(frame.meta, type=wire.Refusal)
            log.warning("%s: the agent refuses this session: %s", self.model, refusal.message)
            if first:
                raise UnavailableError(f"the agent refuses this session: {refusal.message}")
        elif frame.kind == FrameKind.ABSENT:
            self._absent = msgspec.json.decode(frame.meta, type=wire.Refusal)
            log.warning("%s: %s", self.model, self._absent.message)
            self._release()
            self._tether.say(FrameKind.USING, wire.Content(content=""))
            if first:
                raise self._nothing()
        else:
            active = msgspec.json.decode(frame.meta, type=wire.Active)
            self._adopt(frame, active, first=first)

    def _adopt(self, frame: Frame, active: wire.Active, *, first: bool) -> None:
        """Run what the agent says, from the next call on; or go on as before, and say so."""
        content, held = active.ref.content, self._held
        if active.keep and held is not None:
            held.core.place = msgspec.structs.replace(held.core.place, links=active.ref.compose)
            self._tether.say(FrameKind.USING, wire.Content(content=content))
            return
        if held is not None and held.content == content:
            core = session.Session(held.core.predictor, _place(frame, active), self._clock)
        else:
            self._tether.say(FrameKind.LOADING, wire.Content(content=content))
            try:
                blobs, threads = LayoutReader(Path(active.root)), self._threads or active.threads
                predictor = fitness.load(blobs, self.model, active.ref, threads)
            except (EdgekitError, MemoryError) as exc:
                self._could_not(frame, active, _expected(exc), first=first)
                return
            core = session.Session(predictor, _place(frame, active), self._clock)
            log.info("%s: %s runs in slot %s", self.model, active.ref.version, active.slot)
        self._release()
        self._held, self._absent = _Held(content, core), None
        hello, region = self._tether.hello, core.place.region.region
        self._tether.hello = msgspec.structs.replace(hello, region=region, content=content)
        self._tether.say(FrameKind.USING, wire.Content(content=content))
        self._keep_sources(active.ref.compose)

    def _keep_sources(self, links: Sequence[Link]) -> None:
        for model in set(self._sources) - {link.model for link in links}:
            self._sources.pop(model).close()

    def _could_not(
        self, frame: Frame, active: wire.Active, exc: EdgekitError, *, first: bool
    ) -> None:
        told = wire.Unable(content=active.ref.content, message=exc.message[:500])
        self._tether.say(FrameKind.UNABLE, told)
        if first:
            discard(frame)
            raise exc
        log.error("%s %s cannot be loaded: %s", self.model, active.ref.version, exc.message)
        self._unloaded = frame, active
        self._again_at = monotonic() + AGAIN_S

    def _release(self) -> None:
        held, self._held = self._held, None
        self._tether.hello = msgspec.structs.replace(self._tether.hello, region="", content="")
        if held is not None:
            held.release()


def _place(frame: Frame, active: wire.Active) -> Place:
    """Where to count: in the region that is lent to us, and nowhere else."""
    ours, *others = frame.descriptors
    regions = [Region.of(ours), *(Region.of(each, read_only=True) for each in others)]
    return Place.of(active.ref.version, active.slot, regions, active.ref.compose)


def _expected(exc: EdgekitError | MemoryError) -> EdgekitError:
    if isinstance(exc, MemoryError) or errors.is_memory(exc):
        return ResourceError("out of memory while loading")
    return exc
