"""Power is cut at every disk operation of an update; the device always finds its way."""

from __future__ import annotations

import numpy as np
import pytest
from agentkit import layouts
from agentkit.device import POLICY, Device, InlineJobs
from agentkit.disks import FaultyDisk, PowerCut
from agentkit.hosts import hosted

from edgekit.contracts import digest
from edgekit.contracts.states import DeviceState, SlotState
from edgekit_runtime import deployer as module
from edgekit_runtime.disk import PosixDisk


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    monkeypatch.setattr(module, "JobRunner", InlineJobs)


def _story(root, layout, disk, digests) -> None:
    """v1 to confirmation, v2 to confirmation, a bad v3, and back to v1 by order."""
    device = Device(root, layout, disk)
    device.deploy(1, digests[0], "v1")
    device.infer(3)
    device.deploy(2, digests[1], "v2")
    device.infer(3)
    device.deploy(3, digests[2], "v3")
    device.deploy(4, digests[0], "v1")
    device.counting.drain()
    device.counting.retire()


@pytest.fixture
def layout(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    digests = [
        writer.add(seed=1, version="1"),
        writer.add(seed=2, version="2"),
        writer.add(seed=3, version="3", golden_seed=4),
    ]
    return writer.root, digests


def test_the_story_itself(tmp_path, layout):
    root, digests = layout
    _story(tmp_path / "s", root, PosixDisk(), digests)
    device = Device(tmp_path / "s", root, PosixDisk())
    assert device.model.state is SlotState.CONFIRMED
    assert device.model.active.digest == digests[0]
    assert device.model.fallback.digest == digests[1]
    assert "golden" in device.model.failed[digests[2]].reason
    assert device.counting.produced() == 6


def test_every_power_cut_in_an_update_converges(tmp_path, layout):
    root, digests = layout
    dry = FaultyDisk()
    _story(tmp_path / "dry", root, dry, digests)
    for crash_at in range(dry.operations):
        state = tmp_path / f"s{crash_at}"
        with pytest.raises(PowerCut):
            _story(state, root, FaultyDisk(crash_at=crash_at, seed=crash_at), digests)
        device = Device(state, root, PosixDisk())
        device.settle()  # without any network message: what it had serves again
        before = device.model
        if before is not None and before.active is not None:
            device.infer(1)
        # The broker delivers the retained desired state again.
        device.deploy(4, digests[0], "v1")
        device.infer(3)
        assert device.model.state is SlotState.CONFIRMED, crash_at
        assert device.model.active.digest == digests[0], crash_at
        assert device.deployer.record.device_state is DeviceState.OK
        device.counting.drain()
        live = device.spool.live_inferences
        assert device.counting.produced() == live + device.counting.undrained(), crash_at


def test_without_fallback_a_bad_bundle_ends_in_safe_and_recovers(tmp_path, layout):
    root, digests = layout
    device = Device(tmp_path / "s", root, PosixDisk())
    device.deploy(1, digests[2], "v3")
    assert device.deployer.record.device_state is DeviceState.SAFE
    device.deploy(2, digests[0], "v1")
    device.infer(3)
    assert device.model.state is SlotState.CONFIRMED
    assert device.deployer.record.device_state is DeviceState.OK


def test_a_trial_that_kills_the_process_is_reverted_offline(tmp_path, layout):
    root, digests = layout
    device = Device(tmp_path / "s", root, PosixDisk())
    device.deploy(1, digests[0], "v1")
    device.infer(3)
    device.deploy(2, digests[1], "v2")
    assert device.model.state is SlotState.TRIAL
    for _ in range(POLICY.trial_tries):  # each start without an orderly stop spends a try
        device = Device(tmp_path / "s", root, PosixDisk())
        device.settle()
    assert device.model.state is SlotState.ROLLED_BACK
    assert device.model.active.digest == digests[0]
    assert "crash loop" in device.model.failed[digests[1]].reason
    device.infer(1)


def test_orderly_stops_never_use_up_a_trial(tmp_path, layout):
    root, digests = layout
    device = Device(tmp_path / "s", root, PosixDisk())
    device.deploy(1, digests[0], "v1")
    for _ in range(POLICY.trial_tries + 2):
        device.deployer.checkpoint(clean=True)
        device = Device(tmp_path / "s", root, PosixDisk())
        device.settle()
    assert device.model.state is SlotState.TRIAL
    device.infer(3)
    assert device.model.state is SlotState.CONFIRMED


def test_nan_outputs_on_trial_revert(tmp_path, layout):
    writer = layouts.LayoutWriter(tmp_path / "nan")
    good = writer.add(seed=1, version="1")
    bad = writer.add(seed=2, version="2")
    device = Device(tmp_path / "s", writer.root, PosixDisk())
    device.deploy(1, good, "v1")
    device.infer(3)
    device.deploy(2, bad, "v2")
    huge = np.full((1, 4), 3e38, np.float32)  # legal float32 that overflows inside the model
    for _ in range(3):
        hosted(device.serving).infer({"x": huge})
    device.settle()
    assert device.model.state is SlotState.ROLLED_BACK
    assert "NaN rate" in device.model.failed[bad].reason


def test_damaged_active_blob_falls_back_and_is_fetched_again(tmp_path, layout):
    root, digests = layout
    state = tmp_path / "s"
    device = Device(state, root, PosixDisk())
    for gen, number in ((1, 0), (2, 1)):
        device.deploy(gen, digests[number], f"v{number + 1}")
        device.infer(3)
    blob = layouts.model_bytes(2)
    path = state / "blobs" / "sha256" / digest.hex_of(digest.of_bytes(blob))
    path.write_bytes(blob[:-1] + b"?")
    device = Device(state, root, PosixDisk())
    device.settle()
    assert device.model.state is SlotState.ROLLED_BACK
    assert device.model.active.digest == digests[0]
    assert "corrupted" in device.model.failed[digests[1]].reason
    assert not path.exists()
