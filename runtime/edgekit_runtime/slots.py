"""What ``edgekit-agent slots`` shows: every bundle a device holds or refuses, and why."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.states import SlotState
from edgekit_runtime import runtime_record
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.record import NAME as RECORD
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.runtime_record import RuntimeRecord
from edgekit_runtime.twocopy import TwoCopy

RUNTIME = "(runtime)"


class Role(str, Enum):
    """What a bundle is to its model."""

    ACTIVE = "active"
    FALLBACK = "fallback"
    CANDIDATE = "candidate"
    QUARANTINE = "quarantine"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle of one model."""

    model: str
    role: Role
    digest: str
    version: str = ""
    release: str = ""
    target: str = ""
    bytes_held: int | None = None  # on this disk; None: no manifest here, or an image
    bytes_total: int | None = None
    tries: int | None = None  # loads (a candidate: self-tests) left; None where none are counted
    at: float | None = None  # of the failure
    image: str = ""  # digest of the image that holds it; empty where it runs as a process
    why: str


def read(config: AgentConfig) -> list[Slot]:
    """Every slot in the state folder, by model."""
    state, disk = config.device.state_dir, PosixDisk()
    record = TwoCopy(disk, state, RECORD, DeploymentRecord).peek().value or DeploymentRecord()
    blobs = LayoutReader(state)
    found = [
        slot
        for name, model in sorted(record.models.items())
        for slot in _of_model(name, model, blobs)
    ]
    runtimes = runtime_record.read(disk, state)
    return found if runtimes is None else [*found, *_of_runtime(runtimes)]


def _of_runtime(record: RuntimeRecord) -> Iterator[Slot]:
    """The agent's own versions; there is no model of this name (names have no brackets)."""
    proven = record.confirmed or not record.fallback
    why = "the agent that runs" if proven else "on trial: goes back by itself"
    tries = None if proven else record.tries
    yield Slot(model=RUNTIME, role=Role.ACTIVE, digest=record.active, tries=tries, why=why)
    if record.fallback:
        why = "runs again, without any network, when the active one does not work"
        yield Slot(model=RUNTIME, role=Role.FALLBACK, digest=record.fallback, why=why)
    for digest, failure in sorted(record.failed.items(), key=lambda item: item[1].at):
        why = f"{failure.reason} (failed {failure.attempts} times here)"
        yield Slot(model=RUNTIME, role=Role.QUARANTINE, digest=digest, at=failure.at, why=why)


def _of_model(name: str, model: ModelRecord, blobs: LayoutReader) -> Iterator[Slot]:
    if model.active is not None:
        yield _slot(
            name,
            Role.ACTIVE,
            model.active,
            blobs,
            tries=None if model.confirmed else model.tries,
            why=_why_active(model),
        )
    if model.fallback is not None:
        why = "proven here; takes over, without any network, when the active one fails"
        yield _slot(name, Role.FALLBACK, model.fallback, blobs, tries=None, why=why)
    if model.candidate is not None:
        why = _PREPARING.get(model.state, model.state.value)
        yield _slot(name, Role.CANDIDATE, model.candidate, blobs, tries=model.test_tries, why=why)
    for digest, failure in sorted(model.failed.items(), key=lambda item: item[1].at):
        yield Slot(
            model=name,
            role=Role.QUARANTINE,
            digest=digest,
            at=failure.at,
            why=f"{failure.reason} (failed {failure.attempts} times here)",
        )


_PREPARING = {
    SlotState.FETCHING: "being downloaded",
    SlotState.STAGED: "complete on disk, about to be verified",
    SlotState.VERIFIED: "verified, about to be self-tested",
    SlotState.SELF_TEST: "its golden set is being replayed",
    SlotState.SHADOW: "sees sampled inputs beside the active one",
}


def _why_active(model: ModelRecord) -> str:
    if model.confirmed:
        return "confirmed: enough traffic and time without a reason to go back"
    if model.unproven:
        return "on trial, unproven: too little traffic to tell"
    return f"on trial for {model.trial_s:.0f} s before the last start"


def _slot(
    name: str, role: Role, ref: SlotRef, blobs: LayoutReader, *, tries: int | None, why: str
) -> Slot:
    held, total = _sizes(blobs, ref.digest) if ref.image is None else (None, None)
    return Slot(
        model=name,
        role=role,
        digest=ref.digest,
        version=ref.version,
        release=ref.release,
        target=ref.target,
        bytes_held=held,
        bytes_total=total,
        tries=tries,
        why=why,
        image=ref.image.digest if ref.image is not None else "",
    )


def _sizes(blobs: LayoutReader, digest: str) -> tuple[int | None, int | None]:
    try:
        manifest = blobs.manifest(digest)
    except EdgekitError:
        return None, None
    held = total = 0
    for blob in (manifest.config, *manifest.layers):
        total += blob.size
        path = blobs.blob_path(blob.digest)
        held += min(blob.size, PosixDisk().size(path) or 0)
    return held, total


def describe(slots: list[Slot]) -> str:
    """For people."""
    if not slots:
        return "nothing is deployed on this device"
    lines: list[str] = []
    for slot in slots:
        facts = [slot.release, slot.version and f"version {slot.version}", slot.target]
        if slot.bytes_total is not None:
            facts.append(f"{slot.bytes_held} of {slot.bytes_total} bytes")
        if slot.image:
            facts.append(f"image {digests.short(slot.image)}")
        if slot.tries is not None:
            facts.append(f"{slot.tries} tries left")
        known = ", ".join(fact for fact in facts if fact)
        lines.append(f"{slot.model}  {slot.role.value:10}  {digests.short(slot.digest)}  {known}")
        lines.append(f"    {slot.why}")
    return "\n".join(lines)
