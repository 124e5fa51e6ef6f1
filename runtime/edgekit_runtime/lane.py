"""Lane: which worker answers for one model, and how one takes over from another.

A switch fails no request and counts each once: the worker that served gives back its connections,
and whatever it has not answered with them; only then does the next one begin to count, with every
request id that was counted before. Connections wait meanwhile: as long as one inference takes, at
most.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from edgekit.contracts import digest as digests
from edgekit_runtime.loop import Loop
from edgekit_runtime.second_arm import SecondArm, Stage, divide
from edgekit_runtime.serving import Live, Serving
from edgekit_runtime.shadow_link import ShadowLink
from edgekit_runtime.supervision import Ending
from edgekit_runtime.wire import Division, Frame, FrameKind, grant
from edgekit_runtime.worker_model import WorkerModel

UNDIVIDED = divide(Division(share=0.0))


class Phase(Enum):
    """Where connections for the model go."""

    CLOSED = auto()  # nothing serves: they are told so
    STARTING = auto()  # they wait for the worker that begins
    OPEN = auto()  # to the worker
    DRAINING = auto()  # they wait for the worker that ends, and then the next one


class Lane:
    """Belongs to the front's thread."""

    def __init__(
        self,
        serving: Serving,
        loop: Loop,
        *,
        connection: Callable[[WorkerModel, Frame], None],
        ended: Callable[[WorkerModel, Ending], None],
        left: Callable[[WorkerModel, Live], None],
        settled: Callable[[Lane], None],
        fallen: Callable[[], None],
    ) -> None:
        """A lane without a worker.

        Args:
            serving: what is wanted.
            loop: the front's.
            connection: a worker has given back or ended a connection.
            ended: a worker has ended untold.
            left: a worker was retired and holds no unanswered request.
            settled: connections that waited can go on.
            fallen: a candidate in the shadow has ended untold.
        """
        self.serving = serving
        self.phase = Phase.CLOSED
        self.worker: WorkerModel | None = None
        self.live: Live | None = None  # what the worker was told to serve
        self._stopping = False
        self._loop = loop
        self._connection = connection
        self._ended = ended
        self._left = left
        self._settled = settled
        self.link = ShadowLink(loop, fallen)
        self.second = SecondArm(
            serving,
            loop,
            connection=connection,
            ended=ended,
            left=left,
            changed=self._second_changed,
            regrant=self._regrant,
        )

    @property
    def waits(self) -> bool:
        """Whether connections have to wait."""
        return self.phase in (Phase.STARTING, Phase.DRAINING)

    def sync(self) -> None:
        """Bring about what is wanted now."""
        answers = self.worker if self.phase is Phase.OPEN and not self._stopping else None
        self.second.sync(answers)
        if self.waits or self._stopping:
            return  # and then again, or never
        wanted = self.serving.live
        loaded = wanted.loaded if wanted is not None else None
        if not isinstance(loaded, WorkerModel) or loaded.failure is not None:
            wanted, loaded = None, None
        if self.worker is None:
            if wanted is not None and loaded is not None:
                self.worker = loaded
                self.phase = Phase.STARTING
                if loaded is self.second.worker:
                    self.second.promote()
                loaded.attach(self._loop, self._said, self._failed)
                self._grant(loaded, wanted)
                loaded.send(UNDIVIDED)
                self.second.first_began(loaded)
        elif loaded is not self.worker:
            self.phase = Phase.DRAINING
            self.link.lost()
            self.worker.send(Frame(FrameKind.RETIRE))
        elif wanted is not None and wanted is not self.live:
            self._grant(self.worker, wanted)
        answering = self.worker if self.phase is Phase.OPEN else None
        self.link.sync(answering, self.serving.companion)

    def drain(self) -> None:
        """Have everything received answered, then retire; the agent stops."""
        self._stopping = True
        self.second.drain()
        if self.worker is not None and self.phase is not Phase.DRAINING:
            self.phase = Phase.DRAINING
            self.worker.send(Frame(FrameKind.RETIRE, b"answer"))

    def _grant(self, worker: WorkerModel, live: Live) -> None:
        self.live, worker.region = live, live.region
        worker.say_as(f"{self.serving.model} {live.slot} {digests.short(live.ref.digest)}")
        worker.send(grant(live, self.serving.shelf.lend(live.region)))

    def _regrant(self) -> WorkerModel | None:
        """The second arm has ended: the ids it counted are to be known to the first."""
        if self.worker is None or self.live is None or self.phase is Phase.DRAINING:
            return None
        self._grant(self.worker, self.live)
        return self.worker

    def _second_changed(self) -> None:
        self.sync()
        self._settled(self)

    @property
    def arms(self) -> list[tuple[WorkerModel, Live]]:
        """What answers, or is about to."""
        pairs = ((self.worker, self.live), (self.second.worker, self.second.live))
        return [(worker, live) for worker, live in pairs if worker and live]

    def pick(self, *, second: bool) -> WorkerModel | None:
        """Who is to get a request, of the second arm or of the first; None: it has to wait."""
        if not second or self.second.stage is Stage.NONE:
            return self.worker if self.phase is Phase.OPEN else None
        return self.second.worker if self.second.stage is Stage.OPEN else None

    def _said(self, worker: WorkerModel, frame: Frame) -> None:
        if frame.kind in (FrameKind.BACK, FrameKind.GONE):
            self._connection(worker, frame)
        elif worker is not self.worker:
            return
        elif frame.kind == FrameKind.SERVING:
            self.serving.shelf.loan_taken()
            if self.phase is Phase.STARTING:
                self._enter(Phase.OPEN)
        elif frame.kind == FrameKind.DIVIDED:
            self.second.divided(frame.meta)
        elif frame.kind == FrameKind.RETIRED:
            assert self.live is not None
            self._left(worker, self.live)
            self._enter(Phase.CLOSED)

    def _failed(self, worker: WorkerModel, ending: Ending) -> None:
        if worker is self.worker:
            assert self.live is not None
            self._left(worker, self.live)
            self._enter(Phase.CLOSED, before=lambda: self._ended(worker, ending))
        else:
            self._ended(worker, ending)

    def _enter(self, phase: Phase, before: Callable[[], None] | None = None) -> None:
        self.phase = phase
        if phase is Phase.CLOSED:
            self.link.lost()
            self.second.first_lost()
            self.serving.shelf.loan_returned()
            self.worker = self.live = None
        if before is not None:
            before()
        self.sync()
        if not self.waits:
            self._settled(self)
