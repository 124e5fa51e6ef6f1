"""What the planner can ask for. Verbs; frozen; every one has an executor."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.contracts.messages import DeviceConfig, Policy, SlotRef


@dataclass(frozen=True)
class Adopt:
    """Begin deploying ``candidate``: drops a candidate in progress, lifts its own quarantine."""

    model: str
    candidate: SlotRef
    repository: str
    policy: Policy
    retry_token: str


@dataclass(frozen=True)
class Relabel:
    """The bundle stays, its rollout, wave, release or policy changed; a candidate is withdrawn."""

    model: str
    active: SlotRef
    policy: Policy
    retry_token: str


@dataclass(frozen=True)
class Remove:
    """Stop serving a model that is no longer desired."""

    model: str


@dataclass(frozen=True)
class Observe:
    """The desired state ``gen`` has been taken (as far as ``note`` says). Last of its plan."""

    gen: int
    digest: str
    config: DeviceConfig
    note: str


@dataclass(frozen=True)
class Fetch:
    """Download what is missing of the candidate. Slow."""

    model: str


@dataclass(frozen=True)
class Verify:
    """Re-read every blob of the candidate and check that it fits this device. Slow."""

    model: str


@dataclass(frozen=True)
class BeginTest:
    """Enter SELF_TEST."""

    model: str


@dataclass(frozen=True)
class SelfTest:
    """Load the candidate and replay its golden set; a try was persisted before. Slow."""

    model: str


@dataclass(frozen=True)
class StandBeside:
    """Put the candidate beside what serves: in its shadow, or to answer a share of the requests."""

    model: str


@dataclass(frozen=True)
class Replay:
    """Give the candidate the samples that were collected. Slow."""

    model: str


@dataclass(frozen=True)
class Activate:
    """Switch to the candidate, which is loaded; the record is persisted before."""

    model: str
    proven: bool


@dataclass(frozen=True)
class ActivateGroup:
    """Switch to several candidates in one write: all or none."""

    members: tuple[Activate, ...]


@dataclass(frozen=True)
class Load:
    """Load what the record calls active, after a start or a rollback. Slow."""

    model: str
    spend_try: bool


@dataclass(frozen=True)
class SpendTry:
    """An application that embeds the bundle on trial has ended untold."""

    model: str


@dataclass(frozen=True)
class Confirm:
    """The trial is passed."""

    model: str


@dataclass(frozen=True)
class MarkUnproven:
    """On trial for long, with too little traffic to tell."""

    model: str


@dataclass(frozen=True)
class Refuse:
    """Quarantine the candidate; what serves keeps serving."""

    model: str
    reason: str


@dataclass(frozen=True)
class Revert:
    """Quarantine the active bundle and go back to the fallback, or to SAFE without one."""

    model: str
    reason: str


@dataclass(frozen=True)
class Tidy:
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
