"""What the API answers: msgspec structs, the only JSON encoder of the manager."""

from __future__ import annotations

import msgspec

from edgekit.contracts.health import Health as AgentHealth
from edgekit.contracts.messages import ModelReport
from edgekit.contracts.release import Release
from edgekit_fleet.rollout.model import RolloutState, WaveState
from edgekit_fleet.rollout.spec import RolloutSpec
from edgekit_fleet.store.rollouts import StoredVerdict
from edgekit_fleet.store.telemetry import Counted, Event


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every refusal."""

    error: str
    hint: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Health of one part of the manager."""

    ok: bool
    detail: str = ""


class HealthView(msgspec.Struct, frozen=True, kw_only=True):
    """``status`` is ``ok`` when every part is, else ``degraded``."""

    status: str
    version: str
    tenant: str
    pid: int
    started: float
    broker: Part
    ingest: Part
    publisher: Part
    controller: Part
    devices: int
    online: int


class DeviceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One device in the list."""

    device: str
    shard: int
    online: bool
    last_seen: float
    labels: dict[str, str]
    targets: tuple[str, ...]
    agent_version: str
    gen: int
    gen_observed: int
    device_state: str
    models: dict[str, ModelReport]
    note: str = ""
    health: AgentHealth | None = None


class DeviceDetail(DeviceSummary, frozen=True, kw_only=True):
    """One device, with its documents as they travel."""

    joined: float
    desired: msgspec.Raw | None
    reported: msgspec.Raw | None


class ReleaseView(msgspec.Struct, frozen=True, kw_only=True):
    """A published release."""

    release: Release
    created: float


class FieldVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle of a model that devices run now. ``repository`` is None for one never released."""

    target: str
    digest: str
    version: str
    devices: int
    repository: str | None


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A join token. ``token``, its secret, is told once, when it is made."""

    id: int
    device: str | None
    note: str
    created: float
    expires: float
    revoked: float | None
    used: float | None
    used_by: str | None
    token: str | None = None
    command: str | None = None  # what to type on the device


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as it stands. ``devices_exposed`` is every device that was ever given it."""

    name: str
    release: str
    model: str
    status: str
    terminal: bool
    reason: str
    created: float
    finished: float | None
    wave: int
    waves: tuple[WaveState, ...]
    devices_exposed: tuple[str, ...]
    ineligible: tuple[str, ...]


class RolloutDetail(RolloutView, frozen=True, kw_only=True):
    """A rollout with its spec and every verdict reached so far."""

    spec: RolloutSpec
    state: RolloutState
    verdicts: list[StoredVerdict]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of inferences."""

    n: int = 0
    errors: int = 0
    nan: int = 0
    violations: int = 0
    labelled: int = 0
    correct: int = 0
    evicted: int = 0


class InferencesView(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted. ``evicted`` is what devices say they had to drop for lack of space."""

    totals: Totals
    devices: dict[str, Totals]
    releases: dict[str, Totals]
    rows: list[Counted]
    frames: int
    frames_duplicate: int
    frames_damaged: int
    windows_duplicate: int
    records_unknown: int
    messages_malformed: int


class EventsView(msgspec.Struct, frozen=True, kw_only=True):
    """The newest events, newest first."""

    events: list[Event]
