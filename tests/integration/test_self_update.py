"""A device updates its own agent, and goes back by itself from releases that do not work."""

from __future__ import annotations

import pytest
from agentkit import layouts, runtimes
from agentkit.runtimes import SupervisedAgent
from agentkit.world import QUICK, World, wait_for

from edgekit.contracts.messages import DeviceEvent

pytestmark = pytest.mark.integration
DOES_NOT_START = {
    "edgekit_runtime/__init__.py": "",
    "edgekit_runtime/__main__.py": "raise ImportError('libgone.so.1: not found')",
}
NEVER_REPORTS = {
    "edgekit_runtime/__init__.py": "",
    "edgekit_runtime/__main__.py": "import time\ntime.sleep(600)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("update")


@pytest.fixture(scope="module")
def writer(folder):
    return layouts.LayoutWriter(folder / "layout")


@pytest.fixture(scope="module")
def world(folder, writer):
    world = World(folder, writer.root)
    yield world
    world.close()


@pytest.fixture(scope="module")
def device(world, writer, folder):
    """An agent that serves a confirmed model under its first runtime."""
    agent = SupervisedAgent(folder, "dev-1", world.broker.port)
    world.agents.append(agent)
    agent.first = runtimes.publish(writer, "1.0", {})
    agent.model = writer.add()
    agent.install(writer.root, agent.first)
    agent.start()
    _deploy(world, agent, "first", None)
    world.manager.wait_state("dev-1", "TRIAL")
    wait_for(lambda: agent.infer(None)[0] == 200, what="served")
    for _ in range(QUICK.confirm_inferences_min):
        agent.infer(None)
    world.manager.wait_state("dev-1", "CONFIRMED")
    return agent


def _deploy(world, agent, token, runtime) -> None:
    world.manager.runtime = runtime
    world.manager.deploy("dev-1", agent.model, release="v1", token=token)


def _reported(world):
    return world.manager.reported["dev-1"].runtime or {}


def _wait(world, agent, state: str, active: str) -> dict:
    def reached():
        found = _reported(world)
        return found if (found.get("state"), found.get("active")) == (state, active) else None

    return wait_for(reached, timeout_s=60, what=f"{state} {_reported(world)}\n{agent.log}")


def _told(world, text: str) -> None:
    wait_for(
        lambda: any(
            isinstance(r, DeviceEvent) and r.kind == "runtime" and text in r.detail
            for r in world.manager.records
        ),
        what=f"event {text!r}",
    )


def _update(world, agent, writer, version, files=None, **trial) -> str:
    digest = runtimes.publish(writer, version, files or {})
    trial = {"tries": 2, "report_s": 60, "confirm_s": 0.5, **trial}
    _deploy(world, agent, version, runtimes.desired(digest, version, **trial))
    return digest


def test_the_agent_updates_itself_and_loses_nothing(world, device, writer):
    answered = sum(device.infer(f"a-{n}")[0] == 200 for n in range(20))
    before = world.manager.counted
    new = _update(world, device, writer, "2.0")
    found = _wait(world, device, "CONFIRMED", new)
    assert found["fallback"] == device.first
    assert (device.state / "runtimes/current").resolve().name == new[7:]
    wait_for(lambda: device.infer("after")[0] == 200, what="serves again")
    _told(world, "on trial")
    wait_for(lambda: world.manager.counted > before, what="counted")
    wait_for(lambda: world.manager.counted >= answered + 1, what="all counted")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ((DOES_NOT_START, 60.0), "libgone.so.1: not found"),
        ((NEVER_REPORTS, 2.0), "did not report within 2 s"),
    ],
)
def test_a_broken_release_rolls_back_offline_and_the_manager_learns_why(
    world, device, writer, broken, reason
):
    before, seen = _reported(world)["active"], device.log.stat().st_size

    def logged(text):
        return text in device.log.read_text()[seen:]

    bad = _update(world, device, writer, "6.6", broken[0], report_s=broken[1])
    wait_for(lambda: logged("handing over"), what=device.log)
    world.broker.kill()  # from here on the device is alone
    wait_for(lambda: logged("rolled back"), timeout_s=60, what=device.log)
    device.wait_live()
    wait_for(lambda: device.infer("offline")[0] == 200, what="inference is back")
    world.broker.start()
    found = _wait(world, device, "ROLLED_BACK", before)
    assert reason in found["failed"][bad]["reason"]
    _told(world, reason)
    # Told again by the retained state it is not tried again; a new token would lift that.
    wait_for(lambda: "failed here" in _reported(world)["note"], what="refused")
    assert device.infer("still")[0] == 200


def test_a_runtime_that_cannot_serve_what_is_deployed_is_not_tried(world, device, writer):
    before = _reported(world)["active"]
    old = runtimes.publish(writer, "0.1", {}, engine="1.0")
    _deploy(world, device, "old", runtimes.desired(old, "0.1"))
    wait_for(lambda: old in _reported(world).get("failed", {}), what="refused")
    assert "needs onnxruntime" in _reported(world)["failed"][old]["reason"]
    assert _reported(world)["active"] == before
    assert device.infer(None)[0] == 200


def test_a_stop_of_the_supervisor_is_an_orderly_stop_of_the_agent(device):
    assert device.stop() == 0
    assert device.status()["alive"] is False


def test_without_a_supervisor_the_agent_says_so_and_goes_on(world, writer, device):
    agent = world.agent("dev-2")
    world.manager.runtime = runtimes.desired("sha256:" + "0" * 64, "9.9")
    world.manager.deploy("dev-2", device.model, release="v1")
    world.manager.wait_state("dev-2", "TRIAL")
    wait_for(lambda: world.manager.reported["dev-2"].runtime, what="said")
    found = world.manager.reported["dev-2"].runtime
    assert found["state"] == "UNSUPERVISED"
    assert "no supervisor" in found["note"]
    wait_for(lambda: agent.infer(None)[0] == 200, what="served")
