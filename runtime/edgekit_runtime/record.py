"""The deployment record: everything the device must still know after a power cut. Pure values."""

from __future__ import annotations

from typing import Any

import msgspec

from edgekit.contracts.messages import (
    DeviceConfig,
    Failure,
    ModelReport,
    Policy,
    ShadowReport,
    SlotRef,
)
from edgekit.contracts.states import DeviceState, SlotState

NAME = "record"  # of its file in the state folder
SLOT_NAMES = ("a", "b")


class BesideRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate beside what serves: what it is asked, and where its figures begin."""

    agreement_min: float | None = None  # None in a split
    abs: float = 0.0
    rel: float = 0.0
    position: int = 0  # in its region
    seconds: float = 0.0  # before the last start


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ``slot`` names where ``active`` lies; candidate and fallback use the other.

    ``confirmed`` says that ``active`` has proven itself here, so that going back to it needs no
    second trial. Tries are persisted *before* they are used: a load that kills the process counts.
    """

    state: SlotState = SlotState.EMPTY
    active: SlotRef | None = None
    fallback: SlotRef | None = None
    candidate: SlotRef | None = None
    slot: str = SLOT_NAMES[0]
    confirmed: bool = False
    repository: str = ""  # of the candidate
    policy: Policy = Policy()
    retry_token: str = ""
    tries: int = 0  # loads left for an active bundle that is not confirmed
    test_tries: int = 0  # self-tests left for the candidate
    trial_s: float = 0.0  # time on trial before the last start
    unproven: bool = False
    failed: dict[str, Failure] = {}
    fetched_bytes: int = 0
    beside: BesideRecord | None = None  # in SHADOW
    flip: int = (
        0  # generation of the group that ``active`` came with: it goes back together; 0: alone
    )

    def report(self, in_flight: int = 0, shadow: ShadowReport | None = None) -> ModelReport:
        """What the manager is told; ``in_flight``: bytes of the download in progress."""
        return ModelReport(
            state=self.state,
            active=self.active,
            fallback=self.fallback,
            candidate=self.candidate,
            failed=self.failed,
            unproven=self.unproven,
            fetched_bytes=self.fetched_bytes + in_flight,
            shadow=shadow,
        )

    def held(self) -> tuple[SlotRef, ...]:
        """What must stay on this device."""
        return tuple(ref for ref in (self.active, self.fallback, self.candidate) if ref)


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The whole record. ``gen`` is the newest desired state taken; 0 when there was none yet."""

    schema: int = 1
    gen: int = 0
    desired_digest: str = ""
    config: DeviceConfig = DeviceConfig()
    models: dict[str, ModelRecord] = {}
    note: str = ""
    images: tuple[str, ...] = ()  # digests of images that were ever asked for and not removed yet
    clean: bool = False  # the last stop was orderly: the next load of a trial costs no try

    @property
    def device_state(self) -> DeviceState:
        """SAFE while any model has nothing that can serve."""
        stranded = any(model.state is SlotState.SAFE for model in self.models.values())
        return DeviceState.SAFE if stranded else DeviceState.OK

    def bundles(self) -> list[str]:
        """Digests of bundles that must stay on disk, sorted."""
        held = (ref for model in self.models.values() for ref in model.held())
        return sorted({ref.digest for ref in held if ref.image is None})

    def stale_images(self) -> tuple[str, ...]:
        """Digests of images that no slot refers to any more."""
        held = {ref.content for model in self.models.values() for ref in model.held()}
        return tuple(digest for digest in self.images if digest not in held)

    def with_model(self, name: str, model: ModelRecord) -> DeploymentRecord:
        """A copy with ``model`` put in."""
        return msgspec.structs.replace(self, models={**self.models, name: model})


def activation(model: ModelRecord, *, proven: bool, flip: int = 0) -> dict[str, Any]:
    """What changes when the candidate takes over; ``flip``: with others, in this generation.

    Only a confirmed bundle is kept to go back to; an unconfirmed one gives up its slot.
    """
    keep = model.active if model.confirmed else model.fallback
    same = (
        keep is not None and model.candidate is not None and keep.content == model.candidate.content
    )
    moves = model.active is not None and model.confirmed
    return {
        "active": model.candidate,
        "fallback": None if same else keep,
        "candidate": None,
        "slot": other_slot(model.slot) if moves else model.slot,
        "confirmed": proven,
        "tries": model.policy.trial_tries - 1,  # the self-test's load is the first
        "trial_s": 0.0,
        "unproven": False,
        "beside": None,
        "flip": flip,
    }


def reversion(model: ModelRecord) -> dict[str, Any]:
    """What changes when the fallback takes over again: it is proven, and there is none left."""
    return {
        "active": model.fallback,
        "fallback": None,
        "slot": other_slot(model.slot),
        "confirmed": True,
        "tries": 0,
        "unproven": False,
        "flip": 0,
    }


def other_slot(slot: str) -> str:
    """Where the candidate goes."""
    return SLOT_NAMES[1 - SLOT_NAMES.index(slot)]
