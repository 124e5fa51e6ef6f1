"""A real agent gives up bundles for latency and error burn, and lives on with nothing to serve."""

from __future__ import annotations

import msgspec
import pytest
from agentkit.world import QUICK, wait_for

from edgekit.contracts.messages import DeviceEvent, Window
from edgekit.contracts.states import DeviceState

pytestmark = pytest.mark.integration
# Finite in the contract's range only with a flag, and infinite before the softmax: NaN.
OVERFLOW = (3e38, 3e38, 3e38, 3e38)
EAGER = msgspec.structs.replace(QUICK, error_rate_max=1.0, nan_rate_max=1.0)


def _confirm(world, agent, digest, release, policy=QUICK):
    world.manager.deploy("dev-1", digest, release=release, policy=policy)

    def confirmed():
        agent.infer(None)
        model = world.manager.model("dev-1")
        done = model is not None and model.state.value == "CONFIRMED"
        return done and model.active.release == release

    wait_for(confirmed, what=f"{release} confirmed")


def _until_failed(world, agent, digest, row=(0.1, 0.2, 0.3, 0.4)):
    def failed():
        agent.infer(None, row)
        return world.manager.model("dev-1").failed.get(digest)

    return wait_for(failed, what="rolled back").reason


def test_latency_on_trial_and_error_burn_once_confirmed_go_back(world, writer):
    first, slow, burning = (writer.add(seed=n, version=str(n)) for n in (1, 2, 3))
    agent = world.agent()
    _confirm(world, agent, first, "v1")
    strict = msgspec.structs.replace(
        QUICK, confirm_s_min=3600.0, latency_p99_ms_max=0.001, latency_min_n=5
    )
    world.manager.deploy("dev-1", slow, release="v2", policy=strict)
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    reason = _until_failed(world, agent, slow)
    assert reason.startswith("latency: p99 at least ")
    assert "allowed 0.001 ms" in reason
    world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")

    burn = msgspec.structs.replace(EAGER, burn_rate_max=0.2, burn_window_s=60.0)
    _confirm(world, agent, burning, "v3", burn)
    status, body = agent.infer(None, OVERFLOW)
    assert (status, body["parameters"]["flags"]) == (200, ["input_range", "output_nan"])
    reason = _until_failed(world, agent, burning, OVERFLOW)
    assert reason.startswith("error burn: ")
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert model.active.digest == first
    health = world.manager.reported["dev-1"].health
    assert health.resources.memory_available_bytes > 0
    assert health.resources.throttled_why or health.resources.throttled is False


def test_safe_mode_keeps_telemetry_and_updates_alive(world, writer):
    bad, good = writer.add(seed=1, version="1"), writer.add(seed=2, version="2")
    agent = world.agent()
    policy = msgspec.structs.replace(QUICK, confirm_s_min=3600.0)
    world.manager.deploy("dev-1", bad, release="v1", policy=policy)
    world.manager.wait_state("dev-1", "TRIAL", release="v1")
    assert "NaN rate" in _until_failed(world, agent, bad, OVERFLOW)
    wait_for(lambda: world.manager.reported["dev-1"].device_state is DeviceState.SAFE, what="SAFE")
    assert agent.infer(None)[0] == 503
    # What it counted before it was stranded arrives, and so does what happens now.
    wait_for(lambda: sum(window.nan for window in world.manager.windows) >= 5, what="telemetry")
    before = world.manager.reported["dev-1"].at
    wait_for(lambda: world.manager.reported["dev-1"].at > before, what="a report from SAFE")
    assert agent.cli("status").returncode == 0
    _confirm(world, agent, good, "v2")
    wait_for(lambda: world.manager.reported["dev-1"].device_state is DeviceState.OK, what="OK")
    kinds = [type(record) for record in world.manager.records]
    assert Window in kinds
    assert DeviceEvent in kinds


def test_status_shows_readings_and_workers(world, writer):
    agent = world.agent()
    world.manager.deploy("dev-1", writer.add(), release="v1")
    world.manager.wait_state("dev-1", "TRIAL", release="v1")
    wait_for(lambda: agent.status()["resources"]["workers_rss_bytes"], what="a worker's memory")
    told = agent.cli("status").stdout
    assert "MiB memory available" in told
    assert "worker   pid " in told
    wait_for(
        lambda: world.manager.reported["dev-1"].health.resources.workers_rss_bytes.get("meter"),
        what="its memory in the report",
    )
