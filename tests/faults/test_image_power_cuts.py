"""Slots that are images: power is cut at every write, and the engine goes away at every call."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from agentkit import layouts
from agentkit.device import InlineJobs
from agentkit.disks import FaultyDisk, PowerCut
from agentkit.engines import MemoryEngine
from agentkit.hosts import hosted

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import Deployment, Desired, Policy, VariantRef
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.states import SlotState
from edgekit_runtime import deployer as module
from edgekit_runtime import fitness
from edgekit_runtime.agent import emit
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.containers.launcher import AGENT_LABEL, ContainerLauncher, local_name
from edgekit_runtime.containers.slots import ImageSlots
from edgekit_runtime.counting import Counting
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.deployment import Environment
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.spool import Spool
from edgekit_runtime.store import BlobStore
from edgekit_runtime.verifier import DigestVerifier

POLICY = Policy(confirm_inferences_min=3, confirm_s_min=0.0, error_min_n=3)


class Clock(SystemClock):
    """Jumps ahead at every look, so that pauses pass at once."""

    def __init__(self) -> None:
        self._now = itertools.count(step=5.0)

    def monotonic(self) -> float:
        return next(self._now)


class Host:
    """Loads the bundle in an image into this process, as long as the engine has the image."""

    def __init__(self, engine, layout) -> None:
        self._engine, self._blobs = engine, LayoutReader(layout)

    def load(self, model, ref, _policy, *, tested):
        if self._engine.image(local_name("me", ref.content)) is None:
            raise BadInputError("the image is gone")
        loaded = fitness.load(self._blobs, model, ref, 1)
        if tested:
            fitness.warm_up(loaded)
        return loaded


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    monkeypatch.setattr(module, "JobRunner", InlineJobs)


class Device:
    def __init__(self, root, layout, disk, engine) -> None:
        clock = Clock()
        self.engine = engine
        self.spool = Spool.open(disk, root / "spool", clock)
        self.counting = Counting(disk, root / "regions", clock, self.spool)
        launcher = ContainerLauncher(engine, root / "containers", "me")
        self.deployer = Deployer(
            Environment(
                disk=disk,
                clock=clock,
                store=BlobStore(disk, root, DigestVerifier()),
                counting=self.counting,
                state_dir=root,
                targets=("x86-64-v3",),
                host=Host(engine, layout),
                fetcher=lambda _url: None,  # no artifact server: whatever comes is an image
                emit=lambda record: emit(self.spool, record),
                wake=lambda: None,
                serving_changed=lambda _serving: None,
                images=ImageSlots(engine, launcher, "me"),
            )
        )

    def settle(self) -> None:
        """Until nothing happens any more; a step that waits is due at the next look."""
        idle = 0
        while idle < 4:
            idle = 0 if self.deployer.advance() else idle + 1

    def deploy(self, gen: int, variant: VariantRef, release: str) -> None:
        deployment = Deployment(
            rollout="o", wave=0, release=release, variants={"x86-64-v3": variant}, policy=POLICY
        )
        self.deployer.offer(Desired(gen=gen, deployments={"meter": deployment}), "sha256:x")
        self.settle()

    def infer(self, count: int) -> None:
        for _ in range(count):
            hosted(self.deployer.servings["meter"]).infer({"x": np.zeros((1, 4), np.float32)})
        self.settle()

    @property
    def model(self):
        return self.deployer.record.models.get("meter")

    def held(self) -> set[str]:
        """Images in the engine, by the first digit of their digest."""
        return {name.rpartition(":")[2][0] for name in self.engine.names}


@pytest.fixture
def world(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    digests = [
        writer.add(seed=1, version="1"),
        writer.add(seed=2, version="2"),
        writer.add(seed=3, version="3", golden_seed=4),
    ]
    return writer.root, digests


def _variants(engine, digests):
    return [
        VariantRef(digest=digest, repository="m", size=1, image=engine.publish(letter, digest))
        for letter, digest in zip("123", digests, strict=True)
    ]


def _story(device, variants) -> None:
    for gen, number in ((1, 0), (2, 1), (3, 2)):
        device.deploy(gen, variants[number], f"v{number + 1}")
        device.infer(3)
    device.deploy(4, variants[0], "v1")


def test_the_story_itself_and_what_is_pruned(tmp_path, world):
    layout, digests = world
    engine = MemoryEngine()
    device = Device(tmp_path / "s", layout, PosixDisk(), engine)
    variants = _variants(engine, digests)
    device.deploy(1, variants[0], "v1")
    device.infer(3)
    device.deploy(2, variants[1], "v2")
    device.infer(3)
    device.deploy(3, variants[2], "v3")
    assert device.model.state is SlotState.ROLLED_BACK
    assert "golden" in device.model.failed[digests[2]].reason
    assert device.held() == {"1", "2"}  # the refused one is gone, active and fallback stay
    device.deploy(4, variants[0], "v1")
    assert (device.model.state, device.model.active.digest) == (SlotState.CONFIRMED, digests[0])
    device.deployer.offer(Desired(gen=5), "sha256:y")
    device.settle()
    assert (device.held(), device.deployer.record.images) == (set(), ())


def test_the_same_bundle_in_another_image_is_another_slot(tmp_path, world):
    layout, digests = world
    engine = MemoryEngine()
    device = Device(tmp_path / "s", layout, PosixDisk(), engine)
    first = VariantRef(
        digest=digests[0], repository="m", size=1, image=engine.publish("1", digests[0])
    )
    device.deploy(1, first, "a")
    device.infer(3)
    second = VariantRef(
        digest=digests[0], repository="m", size=1, image=engine.publish("2", digests[0])
    )
    device.deploy(2, second, "b")
    assert device.model.state is SlotState.TRIAL
    assert device.model.active.image == second.image
    assert device.model.fallback.image == first.image


def test_every_power_cut_converges_and_leaves_no_image_behind(tmp_path, world):
    layout, digests = world
    dry = FaultyDisk()
    engine = MemoryEngine()
    _story(Device(tmp_path / "dry", layout, dry, engine), _variants(engine, digests))
    for crash_at in range(dry.operations):
        engine = MemoryEngine()
        variants, state = _variants(engine, digests), tmp_path / f"s{crash_at}"
        disk = FaultyDisk(crash_at=crash_at, seed=crash_at)
        with pytest.raises(PowerCut):
            _story(Device(state, layout, disk, engine), variants)
        device = Device(state, layout, PosixDisk(), engine)
        device.settle()  # without any message: what it had serves again
        if device.model is not None and device.model.active is not None:
            device.infer(1)
        device.deploy(4, variants[0], "v1")
        device.infer(3)
        assert device.model.state is SlotState.CONFIRMED, crash_at
        assert device.model.active.digest == digests[0], crash_at
        kept = {ref.content[7] for ref in device.model.held()}
        assert device.held() == kept, crash_at
        assert engine.containers(AGENT_LABEL, "me") == []


def test_an_engine_that_is_away_at_any_call_costs_no_try(tmp_path, world):
    layout, digests = world

    class Flaky(MemoryEngine):
        """Away for a while from call number ``away_at`` on."""

        def __init__(self, away_at: int) -> None:
            super().__init__()
            self.away_at = away_at

        def _call(self, name: str) -> None:
            number = len(self.calls)
            self.away = self.away_at <= number < self.away_at + 7
            super()._call(name)

    dry = MemoryEngine()
    _story(Device(tmp_path / "dry", layout, PosixDisk(), dry), _variants(dry, digests))
    for away_at in range(len(dry.calls)):
        engine = Flaky(away_at)
        device = Device(tmp_path / f"s{away_at}", layout, PosixDisk(), engine)
        variants = _variants(engine, digests)
        for gen, number in ((1, 0), (2, 1)):
            device.deploy(gen, variants[number], f"v{number + 1}")
            assert device.model.state is SlotState.TRIAL, (away_at, engine.calls)
            assert device.model.tries == POLICY.trial_tries - 1
            device.infer(3)
            assert device.model.state is SlotState.CONFIRMED
        device.deploy(3, variants[2], "v3")
        assert set(device.model.failed) == {digests[2]}, away_at
        assert device.model.active.digest == digests[1]
