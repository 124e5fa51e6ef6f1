"""State and observations of a rollout: frozen values, stored as JSON."""

from __future__ import annotations

from enum import Enum

import msgspec

from edgekit.contracts.messages import Deployment, ModelReport
from edgekit.contracts.verdict import Verdict


class Status(str, Enum):
    """Where a rollout stands."""

    RUNNING = "running"
    HOLDING = "holding"  # a gate is inconclusive after the soak time: no further device is touched
    ROLLING_BACK = "rolling_back"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled_back"


TERMINAL = frozenset({Status.SUCCEEDED, Status.ROLLED_BACK})


class Phase(str, Enum):
    """Where a wave stands."""

    WAITING = "waiting"
    INSTALLING = "installing"
    SOAKING = "soaking"
    DONE = "done"
    STOPPED = "stopped"


class WaveState(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of one wave. ``verdicts`` are those of the last look."""

    name: str
    phase: Phase = Phase.WAITING
    devices: tuple[str, ...] = ()  # newly exposed in this wave
    control: tuple[str, ...] = ()  # unexposed when the wave was drawn; empty when not randomised
    started: float | None = None
    soak_started: float | None = None
    finished: float | None = None
    looks: int = 0
    verdicts: tuple[Verdict, ...] = ()


class RolloutState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole durable state. ``previous`` is what each exposed device ran before."""

    schema: int = 1
    status: Status = Status.RUNNING
    reason: str = ""
    created: float
    finished: float | None = None
    wave: int = 0
    waves: tuple[WaveState, ...]
    previous: dict[str, Deployment | None] = {}
    ineligible: tuple[str, ...] = ()  # devices for which the release has no variant

    @property
    def exposed(self) -> tuple[str, ...]:
        """Every device that was ever given the release, in the order of exposure."""
        return tuple(device for wave in self.waves for device in wave.devices)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one device, summed over its windows."""

    n: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0
    confidence_sum: float = 0.0
    classes: tuple[int, ...] = ()


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the manager knows it.

    ``gen`` is that of its desired document, ``gen_observed`` the newest it reported to have acted
    on. ``candidate`` counts what ran on the release under rollout since the soak began, ``other``
    what ran on anything else in the same time.
    """

    device: str
    labels: dict[str, str] = {}
    targets: tuple[str, ...] = ()
    online: bool = False
    gen: int = 0
    gen_observed: int = 0
    deployment: Deployment | None = None
    report: ModelReport | None = None
    candidate: Evidence = Evidence()
    other: Evidence = Evidence()


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """All that a step may look at."""

    devices: dict[str, DeviceView]
    abort_requested: str | None = None  # an operator's reason


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Action: give ``device`` this deployment of the model; None takes the model away."""

    device: str
    deployment: Deployment | None
