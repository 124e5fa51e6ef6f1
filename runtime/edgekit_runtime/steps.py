"""What the planner can ask for. Verbs; frozen; every one has an executor."""

from __future__ import annotations

import msgspec

from edgekit.contracts.messages import DeviceConfig, Policy, SlotRef


class Adopt(msgspec.Struct, frozen=True):
    """Begin deploying ``candidate``: drops a candidate in progress, lifts its own quarantine."""

    model: str
    candidate: SlotRef
    repository: str
    policy: Policy
    retry_token: str


class Relabel(msgspec.Struct, frozen=True):
    """The bundle stays, its rollout, wave, release or policy changed; a candidate is withdrawn."""

    model: str
    active: SlotRef
    policy: Policy
    retry_token: str


class Remove(msgspec.Struct, frozen=True):
    """Stop serving a model that is no longer desired."""

    model: str


class Observe(msgspec.Struct, frozen=True):
    """The desired state ``gen`` has been taken (as far as ``note`` says). Last of its plan."""

    gen: int
    digest: str
    config: DeviceConfig
    note: str


class Fetch(msgspec.Struct, frozen=True):
    """Download what is missing of the candidate. Slow."""

    model: str


class Verify(msgspec.Struct, frozen=True):
    """Re-read every blob of the candidate and check that it fits this device. Slow."""

    model: str


class BeginTest(msgspec.Struct, frozen=True):
    """Enter SELF_TEST."""

    model: str


class SelfTest(msgspec.Struct, frozen=True):
    """Load the candidate and replay its golden set; a try was persisted before. Slow."""

    model: str


class StandBeside(msgspec.Struct, frozen=True):
    """Put the candidate beside what serves: in its shadow, or to answer a share of the requests."""

    model: str


class Replay(msgspec.Struct, frozen=True):
    """Give the candidate the samples that were collected. Slow."""

    model: str


class Activate(msgspec.Struct, frozen=True):
    """Switch to the candidate, which is loaded; the record is persisted before."""

    model: str
    proven: bool


class ActivateGroup(msgspec.Struct, frozen=True):
    """Switch to several candidates in one write: all or none."""

    members: tuple[Activate, ...]


class Load(msgspec.Struct, frozen=True):
    """Load what the record calls active, after a start or a rollback. Slow."""

    model: str
    spend_try: bool


class SpendTry(msgspec.Struct, frozen=True):
    """An application that embeds the bundle on trial has ended untold."""

    model: str


class Confirm(msgspec.Struct, frozen=True):
    """The trial is passed."""

    model: str


class MarkUnproven(msgspec.Struct, frozen=True):
    """On trial for long, with too little traffic to tell."""

    model: str


class Refuse(msgspec.Struct, frozen=True):
    """Quarantine the candidate; what serves keeps serving."""

    model: str
    reason: str


class Revert(msgspec.Struct, frozen=True):
    """Quarantine the active bundle and go back to the fallback, or to SAFE without one."""

    model: str
    reason: str


class Tidy(msgspec.Struct, frozen=True):
    """Remove containers of an earlier agent and images that no slot refers to any more."""


Step = (
    Adopt
    | Relabel
    | Remove
    | Observe
    | Fetch
    | Verify
    | BeginTest
    | SelfTest
    | StandBeside
    | Replay
    | Activate
    | ActivateGroup
    | Load
    | SpendTry
    | Confirm
    | MarkUnproven
    | Refuse
    | Revert
    | Tidy
)
