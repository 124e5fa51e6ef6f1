"""Second arm of a lane: a candidate that answers a share of the requests beside what serves.

Whose a request is follows from its id, so that one sent again meets the same arm; without an id
it is drawn. The worker that reads a request of the other arm gives the connection back, and the
front hands it on. Each request counts once across begin and end: first the one arm stops answering
what is the other's, then the other learns every id that was counted, then it begins. What belongs
to the arm that is not ready waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

import msgspec

from edgekit_runtime.loop import Loop
from edgekit_runtime.serving import Companion, Live, Serving
from edgekit_runtime.supervision import Ending
from edgekit_runtime.wire import Division, Frame, FrameKind, grant
from edgekit_runtime.worker_model import WorkerModel

BORROWER = "second"


class Stage(Enum):
    """Where the second arm stands."""

    NONE = auto()  # the first answers all
    DIVIDING = auto()  # the first is told what is not its own any more
    STARTING = auto()  # the second is told where to count
    OPEN = auto()  # both answer
    DRAINING = auto()  # the second answers nothing new
    MERGING = auto()  # the first is told that all is its own again


class SecondArm:
    """Belongs to the front's thread."""

    def __init__(
        self,
        serving: Serving,
        loop: Loop,
        *,
        connection: Callable[[WorkerModel, Frame], None],
        ended: Callable[[WorkerModel, Ending], None],
        left: Callable[[WorkerModel, Live], None],
        changed: Callable[[], None],
        regrant: Callable[[], WorkerModel | None],
    ) -> None:
        """No second arm.

        Args:
            serving: what is wanted.
            loop: the front's.
            connection: it has given back or ended a connection.
            ended: it has ended untold.
            left: it was retired and holds no unanswered request.
            changed: connections that waited for it can go on, and the lane can look again.
            regrant: tell the first arm anew where ids were counted; None: there is none to tell.
        """
        self.worker: WorkerModel | None = None
        self.live: Live | None = None
        self.stage = Stage.NONE
        self._serving = serving
        self._loop = loop
        self._share = 0.0
        self._told = b""  # the newest division the first arm was sent
        self._connection = connection
        self._ended = ended
        self._left = left
        self._changed = changed
        self._regrant = regrant

    @property
    def waits(self) -> bool:
        """Whether what belongs to it has to wait."""
        return self.stage not in (Stage.NONE, Stage.OPEN)

    def sync(self, first: WorkerModel | None) -> None:
        """Bring about what is wanted, beside ``first``, which answers now."""
        self._close_abandoned()
        wanted = self._wanted()
        if self.stage is Stage.NONE and wanted is not None and first is not None:
            self.stage, self._share = Stage.DIVIDING, wanted.share
            beside = wanted.live.ref.digest if wanted.live is not None else ""
            self._tell(first, Division(share=wanted.share, beside=beside))
        elif self.stage is Stage.OPEN and self.worker is not None:
            live = self._serving.live
            taking_over = live is not None and live.loaded is self.worker
            gone = wanted is None or wanted.live is None or wanted.live.loaded is not self.worker
            if gone and not taking_over:
                self.stage = Stage.DRAINING
                self.worker.send(Frame(FrameKind.RETIRE))

    def divided(self, meta: bytes) -> None:
        """The first arm holds to a division."""
        if meta != self._told:
            return  # an earlier one
        if self.stage is Stage.DIVIDING:
            self._begin()
        elif self.stage is Stage.MERGING:
            self._enter(Stage.NONE)

    def first_began(self, first: WorkerModel) -> None:
        """Another worker is the first arm now; it was told where to count."""
        if self.worker is not None:
            digest = self.live.ref.digest if self.live is not None else ""
            self._tell(first, Division(share=self._share, beside=digest))

    def first_lost(self) -> None:
        """The first arm has ended; the next one learns from the rings what was counted."""
        if self.stage in (Stage.DIVIDING, Stage.MERGING):
            self._enter(Stage.NONE)

    def promote(self) -> None:
        """It is the first arm from here on."""
        self.worker = self.live = None
        self._serving.shelf.loan_returned(BORROWER)
        self.stage = Stage.NONE

    def drain(self) -> None:
        """Have it answer what it has and retire; the agent stops."""
        if self.worker is not None and self.stage is not Stage.DRAINING:
            self.stage = Stage.DRAINING
            self.worker.send(Frame(FrameKind.RETIRE, b"answer"))

    def _tell(self, first: WorkerModel, division: Division) -> None:
        frame = divide(division)
        self._told = frame.meta
        first.send(frame)

    def _wanted(self) -> Companion | None:
        wanted = self._serving.companion
        loaded = wanted.live.loaded if wanted is not None and wanted.live is not None else None
        usable = isinstance(loaded, WorkerModel) and loaded.failure is None
        return wanted if wanted is not None and wanted.split and usable else None

    def _begin(self) -> None:
        wanted = self._wanted()
        live = wanted.live if wanted is not None else None
        if live is None or not isinstance(live.loaded, WorkerModel):
            self._merge()
            return
        self.stage, self.worker, self.live = Stage.STARTING, live.loaded, live
        live.loaded.region = live.region
        live.loaded.attach(self._loop, self._said, self._failed)
        live.loaded.send(grant(live, self._serving.shelf.lend(live.region, BORROWER)))
        live.loaded.send(divide(Division(share=self._share, second=True)))

    def _merge(self) -> None:
        first = self._regrant()
        if first is None:
            self._enter(Stage.NONE)
            return
        self.stage = Stage.MERGING
        self._tell(first, Division(share=0.0))

    def _said(self, worker: WorkerModel, frame: Frame) -> None:
        if frame.kind in (FrameKind.BACK, FrameKind.GONE):
            self._connection(worker, frame)
        elif worker is not self.worker:
            return
        elif frame.kind == FrameKind.SERVING:
            self._serving.shelf.loan_taken(BORROWER)
            if self.stage is Stage.STARTING:
                self._enter(Stage.OPEN)
        elif frame.kind == FrameKind.RETIRED:
            self._end(worker)

    def _failed(self, worker: WorkerModel, ending: Ending) -> None:
        if worker is self.worker:
            self._end(worker)
        self._ended(worker, ending)

    def _end(self, worker: WorkerModel) -> None:
        assert self.live is not None
        self._left(worker, self.live)
        self.worker = self.live = None
        self._serving.shelf.loan_returned(BORROWER)
        self._merge()

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self._changed()

    def _close_abandoned(self) -> None:
        """What was to be the second arm and is not wanted any more, unless it is to be retired."""
        abandoned = self._serving.abandoned
        while abandoned:
            loaded = abandoned.popleft()
            if loaded is not self.worker:
                loaded.close()


def divide(division: Division) -> Frame:
    """Tell an arm which requests are its own."""
    return Frame(FrameKind.DIVIDE, msgspec.json.encode(division))
