"""What a new agent must not spoil for the one that may come back after it."""

from __future__ import annotations

import msgspec
import pytest
from agentkit import layouts
from agentkit.device import Device, InlineJobs

from edgekit.contracts import digest
from edgekit.contracts.states import SlotState
from edgekit_runtime import deployer, deployment
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.errors import RuntimeUnfitError
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.twocopy import TwoCopy


@pytest.fixture
def device(tmp_path, monkeypatch):
    monkeypatch.setattr(deployer, "JobRunner", InlineJobs)
    writer = layouts.LayoutWriter(tmp_path / "layout")
    device = Device(tmp_path / "s", writer.root, PosixDisk())
    device.deploy(1, writer.add(seed=1), "v1")
    device.infer(3)
    assert device.model.state is SlotState.CONFIRMED
    return device


def _settle(on_trial) -> None:
    while on_trial.advance():
        pass


def test_a_proven_bundle_that_fails_under_a_runtime_on_trial_is_not_blamed(device, tmp_path):
    blob = layouts.model_bytes(1)
    name = digest.hex_of(digest.of_bytes(blob))
    (tmp_path / "s/blobs/sha256" / name).write_bytes(blob[:-1] + b"?")
    env = msgspec.structs.replace(device.deployer._env, runtime_on_trial=True)
    on_trial = Deployer(env)
    with pytest.raises(RuntimeUnfitError, match="does not work here"):
        _settle(on_trial)
    found = TwoCopy(PosixDisk(), tmp_path / "s", "record", DeploymentRecord).peek().value
    assert found.models["meter"].active == device.model.active
    assert found.models["meter"].failed == {}


def test_a_record_that_only_the_rolled_back_runtime_can_read_is_replaced(device, tmp_path):
    state = tmp_path / "s"
    TwoCopy(PosixDisk(), state, deployment.BEFORE, DeploymentRecord).save(device.deployer.record)
    for copy in "ab":
        (state / f"record.{copy}").write_bytes(b"EKD2 of the future")
    again = Device(state, None, PosixDisk())
    again.settle()
    assert again.model.active == device.model.active
    again.infer(1)
    assert (state / "record.a.broken").exists()
