"""The deployment record on disk: the only code that writes it.

A change is persisted before it takes effect anywhere else, and told to the audit lane after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.messages import DeviceEvent, Failure, Record, SlotEvent, SlotRef
from edgekit.contracts.states import SlotState
from edgekit_runtime.applications import Applications
from edgekit_runtime.beside import Readings
from edgekit_runtime.counting import Counting
from edgekit_runtime.errors import RuntimeUnfitError
from edgekit_runtime.machine import Event, next_state
from edgekit_runtime.ports import Clock, Disk, Fetcher, Host, Images
from edgekit_runtime.record import NAME, DeploymentRecord, ModelRecord
from edgekit_runtime.serving import Serving
from edgekit_runtime.steps import Observe
from edgekit_runtime.store import BlobStore
from edgekit_runtime.twocopy import TwoCopy

# As the last proven runtime left it: a newer one, rolled back, may have written what this one
# cannot read.
BEFORE = "record.before"
FAILED_MAX = 16  # quarantined digests remembered per model
REASON_CHARS_MAX = 500
AUDITED = frozenset(
    {
        SlotState.SHADOW,
        SlotState.TRIAL,
        SlotState.CONFIRMED,
        SlotState.ROLLED_BACK,
        SlotState.SAFE,
        SlotState.EMPTY,
    }
)


class Environment(msgspec.Struct, frozen=True):
    """What the deployer works with."""

    disk: Disk
    clock: Clock
    store: BlobStore
    counting: Counting
    state_dir: Path
    targets: tuple[str, ...]
    host: Host
    fetcher: Callable[[str | None], Fetcher | None]  # from an artifacts_url
    emit: Callable[[Record], None]  # audit records go to the spool
    wake: Callable[[], None]
    serving_changed: Callable[[Serving], None]  # what is to serve; called by the control thread
    throttled: Callable[[], bool | None] = lambda: None  # the processor is; None: nobody tells
    images: Images | None = None  # this device has a container engine
    applications: Applications | None = None  # that embed a model
    workers: bool = True  # hold what is active; else applications alone do
    readings: Callable[[], Readings] = Readings  # of the device; by default nothing is known
    runtime_on_trial: bool = False  # the supervisor has another one to go back to


class Change(msgspec.Struct, frozen=True):
    """What happens to one model."""

    model: str
    event: Event | None
    reason: str
    changes: Mapping[str, object]


class Deployment:
    """The record in memory and on disk, always equal."""

    def __init__(self, env: Environment) -> None:
        self._clock = env.clock
        self._emit = env.emit
        self._runtime_on_trial = env.runtime_on_trial
        self._file = TwoCopy(env.disk, env.state_dir, NAME, DeploymentRecord)
        loaded = self._file.load()
        self.record = loaded.value or DeploymentRecord()
        if loaded.broken:
            detail = "both copies of the deployment record were unreadable"
            before = TwoCopy(env.disk, env.state_dir, BEFORE, DeploymentRecord).peek().value
            if before is not None:
                self.save(before)
                detail += ", the one from before the newest runtime is used"
            self._emit(DeviceEvent(kind="record_rebuilt", detail=detail, at=self._clock.wall()))

    def model(self, name: str) -> ModelRecord:
        """The record of ``name``; an empty one when there is none."""
        return self.record.models.get(name, ModelRecord())

    def save(self, record: DeploymentRecord) -> None:
        """Make ``record`` the record; durable on return."""
        self._file.save(record)
        self.record = record

    def observe(self, step: Observe) -> None:
        """A desired state has been taken."""
        changed = msgspec.structs.replace(
            self.record,
            gen=step.gen,
            desired_digest=step.digest,
            config=step.config,
            note=step.note,
        )
        self.save(changed)

    def note(self, text: str) -> None:
        """Tell people something through the reported state."""
        self.save(msgspec.structs.replace(self.record, note=text[:REASON_CHARS_MAX]))

    def change(self, name: str, event: Event | None, reason: str = "", **changes: object) -> None:
        """Persist ``changes`` and the state that ``event`` leads to (the same when ignored)."""
        self.change_all([Change(name, event, reason, changes)])

    def change_all(self, changes: Sequence[Change]) -> None:
        """Persist the changes of several models in one write: all or none survive a power cut."""
        record, events = self.record, []
        for change in changes:
            old = self.model(change.model)
            state = (next_state(old.state, change.event) if change.event else None) or old.state
            new = msgspec.structs.replace(old, state=state, **change.changes)
            record = record.with_model(change.model, new)
            if state is not old.state and state in AUDITED:
                events.append(self._event(change, old, new))
        self.save(record)
        for event in events:
            self._emit(event)

    def _event(self, change: Change, old: ModelRecord, new: ModelRecord) -> SlotEvent:
        ref = new.active or old.candidate or old.active
        return SlotEvent(
            model=change.model,
            digest=ref.digest if ref else "",
            release=ref.release if ref else "",
            rollout=ref.rollout if ref else "",
            state=new.state,
            reason=change.reason,
            at=self._clock.wall(),
        )

    def quarantine(
        self, model: ModelRecord, ref: SlotRef, reason: str, *, shared: bool = False
    ) -> dict[str, Failure]:
        """``model.failed`` with ``ref`` added, the oldest dropped; ``shared``: by its group."""
        active = model.active
        proven = active is not None and model.confirmed and active.content == ref.content
        if self._runtime_on_trial and proven:
            # It worked under the runtime before: that one comes back, the bundle stays.
            raise RuntimeUnfitError(f"{digests.short(ref.digest)} does not work here: {reason}")
        before = model.failed.get(ref.digest)
        failure = Failure(
            reason=reason[:REASON_CHARS_MAX],
            at=self._clock.wall(),
            attempts=before.attempts + 1 if before else 1,
            retry_token=model.retry_token,
            content=ref.image.digest if ref.image is not None else "",
            shared=shared,
        )
        newest = sorted({**model.failed, ref.digest: failure}.items(), key=lambda item: item[1].at)
        return dict(newest[-FAILED_MAX:])
