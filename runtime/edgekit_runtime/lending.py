"""What applications that embed a model are told: what to run, and where to count it.

Belongs to the control thread. Level-based: each round compares what every session was told last
with what the record says now. A region is lent to one session and never to a second one; of a
session that comes back after the agent was away, the region it still counts in is taken up again.
An application that ends without a goodbye while it runs a bundle on trial, or cannot load one,
costs that bundle a try.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.composition import Link
from edgekit.contracts.errors import EdgekitError
from edgekit_runtime import leases, wire
from edgekit_runtime.applications import Application
from edgekit_runtime.deployment import Environment
from edgekit_runtime.hosted import Hosted
from edgekit_runtime.monitors.windows import labels_for
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.region import Labels, Region
from edgekit_runtime.serving import Live
from edgekit_runtime.supervision import Ending, EndKind
from edgekit_runtime.wire import Frame, FrameKind

TELLS_MAX = 8  # not answered; each holds a region and a bundle for an application that sleeps
NOTE_S = 10.0  # between audit records of ends that cost nothing
AGAIN_S = 5.0  # after the disk refused a region
log = logging.getLogger(__name__)


class _Session(msgspec.Struct):
    """One application's use of one model."""

    application: Application
    hello: wire.Hello
    content: str = ""  # what it runs, or is loading
    told: tuple[Labels, tuple[Link, ...]] | None = None
    absent: str = ""  # why it was told that there is nothing
    unanswered: int = 0
    orderly: bool = False


class Lending(msgspec.Struct):
    """Sessions by connection."""

    env: Environment
    hosted: Hosted
    _sessions: dict[int, _Session] = msgspec.field(default_factory=dict)
    _again_at: float = 0.0
    _noted_at: dict[str, float] = msgspec.field(default_factory=dict)

    def hear(self, record: DeploymentRecord) -> bool:
        """Take up what applications said; whether one stopped using a bundle."""
        applications = self.env.applications
        found = False
        for application, frame in applications.take() if applications is not None else ():
            if frame is None:
                session = self._sessions.pop(application.number, None)
                if session is not None:
                    found = True
                    self._ended(session, record)
                continue
            try:
                found |= self._take(application, frame, record)
            except (msgspec.MsgspecError, EdgekitError) as exc:
                log.warning("session of pid %d: %s", application.pid, exc)
                self._drop(application)
        return found

    def tell(self, record: DeploymentRecord) -> None:
        """Tell every session what is so now, if it was told otherwise."""
        if self.env.clock.monotonic() < self._again_at:
            return
        try:
            for session in list(self._sessions.values()):
                self._tell(session, record)
        except EdgekitError as exc:
            # The disk is full or full of errors: sessions go on with what they have.
            log.warning("no region for a session: %s", exc.message)
            self._again_at = self.env.clock.monotonic() + AGAIN_S

    # --- what they say -------------------------------------------------------------------------

    def _take(self, application: Application, frame: Frame, record: DeploymentRecord) -> bool:
        session = self._sessions.get(application.number)
        if session is None:
            if frame.kind == FrameKind.HELLO:
                self._hello(application, msgspec.json.decode(frame.meta, type=wire.Hello))
            return False
        if frame.kind == FrameKind.GOODBYE:
            session.orderly = True
        elif frame.kind == FrameKind.LOADING:
            session.content = msgspec.json.decode(frame.meta, type=wire.Content).content
        elif frame.kind == FrameKind.USING:
            session.content = msgspec.json.decode(frame.meta, type=wire.Content).content
            session.unanswered = 0
            return True
        elif frame.kind == FrameKind.UNABLE:
            told = msgspec.json.decode(frame.meta, type=wire.Unable)
            session.unanswered = 0
            reason = f"{_name(session)} cannot load it: {told.message}"
            self._blame(session, record, told.content, reason)
        return False

    def _hello(self, application: Application, hello: wire.Hello) -> None:
        if hello.protocol != wire.SESSION_PROTOCOL:
            reason = f"it speaks protocol {hello.protocol}, the agent {wire.SESSION_PROTOCOL}"
            self._refuse(application, FrameKind.FAILED, "UnavailableError", reason)
            self._drop(application)
            return
        if not hello.session:
            self._drop(application)
            return
        log.info("%s: session of pid %d", hello.model[:80], application.pid)
        session = _Session(application, hello, content=hello.content)
        self._sessions[application.number] = session

    def _ended(self, session: _Session, record: DeploymentRecord) -> None:
        if not session.orderly:
            reason = f"{_name(session)} ended without a goodbye"
            self._blame(session, record, session.content, reason)

    def _blame(
        self, session: _Session, record: DeploymentRecord, content: str, reason: str
    ) -> None:
        name = session.hello.model
        model = record.models.get(name)
        on_trial = model is not None and model.active is not None and not model.confirmed
        if on_trial and model is not None and model.active and model.active.content == content:
            self.hosted.application_ended(name, Ending(EndKind.CRASH, reason))
        now = self.env.clock.monotonic()
        if not on_trial and now - self._noted_at.get(name, -NOTE_S) < NOTE_S:
            self.hosted.ended += 1  # audit records are for ever: not one for every short-lived one
            return
        self._noted_at[name] = now
        self.hosted.tell(f"{name} {digests.short(content) if content else '-'}: {reason}")

    # --- what they are told --------------------------------------------------------------------

    def _tell(self, session: _Session, record: DeploymentRecord) -> None:
        name = session.hello.model
        model = record.models.get(name)
        absent = _absent(name, model)
        if absent:
            if session.absent != absent:
                session.absent, session.told = absent, None
                self._say(
                    session,
                    lambda: self._refuse(
                        session.application, FrameKind.ABSENT, "NotServingError", absent
                    ),
                )
            return
        assert model is not None
        assert model.active is not None
        serving = self.hosted.servings.get(name)
        live = serving.live if serving is not None else None
        if live is None or live.ref.content != model.active.content:
            return  # it is being loaded, or loaded again
        labels = labels_for(name, live.ref, live.slot, live.loaded)
        labels = msgspec.structs.replace(labels, session=session.hello.session)
        if session.told != (labels, live.ref.compose):
            self._say(session, lambda: self._lend(session, live, labels))

    def _say(self, session: _Session, say: Callable[[], None]) -> None:
        if session.unanswered >= TELLS_MAX:
            self._drop(session.application)  # it comes back when it wakes, and hears the newest
            return
        session.unanswered += 1
        say()

    def _lend(self, session: _Session, live: Live, labels: Labels) -> None:
        shelf = self.env.counting.shelf(labels.model)
        region = _counted_in(session.hello, labels, shelf.regions())
        descriptors: tuple[int, ...] = ()
        lease: int | None = None
        keep = region is not None and session.told is None
        if not keep:
            region = self.env.counting.lend(labels)
            lease = leases.take(region.path)
            descriptors = (lease, *(each.descriptor for each in shelf.newest(region)))
        applications = self.env.applications
        assert applications is not None
        active = wire.Active(
            root=str(self.env.state_dir.absolute()),
            ref=live.ref,
            slot=live.slot,
            threads=applications.threads,
            keep=keep,
        )
        frame = Frame(FrameKind.ACTIVE, msgspec.json.encode(active), b"", descriptors)
        applications.send(session.application, frame)
        if lease is not None:
            os.close(lease)  # the copy on its way holds the lock
        session.told, session.absent = (labels, live.ref.compose), ""

    def _refuse(self, application: Application, kind: FrameKind, error: str, message: str) -> None:
        assert self.env.applications is not None
        refusal = wire.Refusal(error=error, message=message)
        self.env.applications.send(application, Frame(kind, msgspec.json.encode(refusal)))

    def _drop(self, application: Application) -> None:
        """Hang up; it has not ended, so nobody is blamed."""
        self._sessions.pop(application.number, None)
        assert self.env.applications is not None
        self.env.applications.drop(application)


def _name(session: _Session) -> str:
    return f"the application of pid {session.application.pid}"


def _absent(name: str, model: ModelRecord | None) -> str:
    """Why there is nothing to run; empty when there is something."""
    if model is None or model.active is None:
        state = f" (it is {model.state.value})" if model is not None else ""
        return f"model {name[:80]!r} is not active on this device{state}"
    if model.active.image is not None:
        return f"model {name!r} is deployed as an image, which only a container engine runs"
    return ""


def _counted_in(hello: wire.Hello, labels: Labels, regions: list[Region]) -> Region | None:
    """The region a session brought along, when it is what it would be lent now."""
    for region in regions:
        if region.region == hello.region and region.labels == labels:
            return region if leases.held(region.path) else None
    return None
