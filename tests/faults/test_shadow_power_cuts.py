"""A candidate in the shadow, on a device in the test's own process: suspended, judged, cut."""

from __future__ import annotations

import shutil

import msgspec
import pytest
from agentkit import layouts
from agentkit.device import POLICY, Device, InlineJobs
from agentkit.disks import FaultyDisk, PowerCut

from edgekit.contracts.shadow import Shadow
from edgekit.contracts.states import SlotState
from edgekit_runtime import besides
from edgekit_runtime import deployer as module
from edgekit_runtime.beside import Readings
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.kinds import Kind
from edgekit_runtime.region import AGREED

ONLINE_EVERY = 4  # boots go on to meet a manager: they find the same record as offline
SHADOW = Shadow(share=0.5, inferences_min=5, seconds_min=0.0, agreement_min=0.8)
POLICY_SHADOW = msgspec.structs.replace(POLICY, shadow=SHADOW)


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    monkeypatch.setattr(module, "JobRunner", InlineJobs)
    monkeypatch.setattr(besides, "LOOK_S", 0.0)
    monkeypatch.setattr(besides, "PAUSE_S", 0.0)


@pytest.fixture
def story(tmp_path):
    """A device on which v1 is confirmed, and what it can be given."""
    writer = layouts.LayoutWriter(tmp_path / "layout")
    digests = [writer.add(seed=seed, version=str(seed)) for seed in (1, 2)]
    device = Device(tmp_path / "v1", writer.root, PosixDisk())
    device.deploy(1, digests[0], "v1")
    device.infer(3)
    assert device.model.state is SlotState.CONFIRMED
    device.deployer.checkpoint(clean=True)
    return writer.root, digests, tmp_path / "v1"


def _shown(device, count: int, *, agreed: bool) -> None:
    """What the candidate's worker would write."""
    region = device.serving.companion.region
    for _ in range(count):
        region.append(Kind.SHADOW, request=0, time=1.0, flags=AGREED if agreed else 0)
    device.settle()


def test_samples_stop_while_the_device_is_hot_or_low_and_the_reason_is_told(story):
    root, digests, state = story
    now = Readings()
    device = Device(state, root, PosixDisk(), readings=lambda: now)
    device.settle()
    device.deploy(2, digests[1], "v2", POLICY_SHADOW)
    assert device.model.state is SlotState.SHADOW
    for now, why in (  # noqa: B007 - read by the device
        (Readings(throttled=True), "hot"),
        (Readings(), ""),
        (Readings(memory_available=1), "low on memory"),
        (Readings(throttled=False, memory_available=1 << 40), ""),
    ):
        device.settle()
        report = device.deployer.reports()["meter"]
        assert report.shadow.suspended.startswith(why)
        assert device.serving.companion.share == (0.0 if why else SHADOW.share)
    assert device.serving.live.ref.digest == digests[0]


def test_where_applications_alone_answer_a_shadow_is_refused_and_why(story):
    root, digests, state = story
    device = Device(state, root, PosixDisk(), workers=False)
    device.settle()
    device.deploy(2, digests[1], "v2", POLICY_SHADOW)
    assert device.model.state is SlotState.ROLLED_BACK
    assert device.model.active.digest == digests[0]
    assert "no worker answers here" in device.model.failed[digests[1]].reason


def test_a_shadow_is_forgotten_when_something_else_is_wanted(story):
    root, digests, state = story
    device = Device(state, root, PosixDisk())
    device.settle()
    device.deploy(2, digests[1], "v2", POLICY_SHADOW)
    _shown(device, 1, agreed=False)
    device.deploy(3, digests[0], "v1")
    assert device.model.state is SlotState.CONFIRMED
    assert device.serving.companion is None
    device.deploy(4, digests[1], "v2", POLICY_SHADOW)
    _shown(device, 5, agreed=True)  # the one that disagreed was another try's
    assert device.model.state is SlotState.TRIAL


@pytest.mark.parametrize("agreed", [True, False])
def test_after_every_power_cut_a_shadow_goes_on_and_judges_the_same(story, tmp_path, agreed):
    root, digests, state = story

    def tell(folder, disk, agreed: bool) -> None:
        shutil.copytree(state, folder)
        device = Device(folder, root, disk)
        device.settle()
        device.deploy(2, digests[1], "v2", POLICY_SHADOW)
        _shown(device, 5, agreed=agreed)
        device.counting.drain()

    serves = digests[1] if agreed else digests[0]
    dry = FaultyDisk()
    tell(tmp_path / f"dry-{agreed}", dry, agreed)
    for crash_at in range(dry.operations):
        folder = tmp_path / f"{agreed}-{crash_at}"
        with pytest.raises(PowerCut):
            tell(folder, FaultyDisk(crash_at=crash_at, seed=crash_at), agreed)
        device = Device(folder, None, PosixDisk())
        device.settle()  # offline
        assert device.serving.live.ref.digest in {digests[0], serves}, crash_at
        if crash_at % ONLINE_EVERY:
            continue
        online = Device(folder, root, PosixDisk())
        online.settle()
        online.deploy(2, digests[1], "v2", POLICY_SHADOW)  # the retained one, again
        if online.model.state is SlotState.SHADOW:
            _shown(online, 5, agreed=agreed)
        assert online.serving.live.ref.digest == serves, crash_at
        assert (digests[1] in online.model.failed) is not agreed, crash_at
        assert online.counting.produced() == 3, crash_at  # samples are no inferences
