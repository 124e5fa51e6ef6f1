"""Models inside applications: real agents, real brokers, applications of their own processes."""

from __future__ import annotations

import json

import msgspec
import pytest
from agentkit.applications import AppProcess
from agentkit.world import QUICK, wait_for

from edgekit.contracts import digest as digests
from edgekit.contracts.messages import DeviceEvent
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime.guard import Flags

pytestmark = pytest.mark.integration
LONG_TRIAL = msgspec.structs.replace(QUICK, confirm_s_min=3600.0)
ALONE = "workers = false\n"


@pytest.fixture
def applications():
    found: list[AppProcess] = []

    def start(agent, **options) -> AppProcess:
        application = AppProcess(state_dir=agent.state, **options)
        found.append(application)
        return application.ready()

    yield start
    for application in found:
        application.kill()


def _confirmed(world, writer, applications, extra=""):
    """Version 1 proven by an application, which runs on."""
    agent = world.agent(extra=extra)
    world.manager.deploy("dev-1", writer.add(seed=1, version="1"), release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    application = applications(agent)
    application.infer(*(f"a-{n}" for n in range(8)))
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    return agent, application


def _runs(application, version: str) -> None:
    wait_for(
        lambda: application.infer(None)[0].get("version") == version, what=f"it runs {version}"
    )


def _counted(world, total: int) -> None:
    wait_for(lambda: world.manager.counted >= total, what=f"{total}, got {world.manager.counted}")
    assert world.manager.counted == total


def _told(world, text: str) -> None:
    def found():
        events = [each for each in world.manager.records if isinstance(each, DeviceEvent)]
        return any(text in event.detail for event in events)

    wait_for(found, what=f"event {text!r}")


@pytest.mark.parametrize("overlap", [True, False], ids=["two at once", "one at a time"])
def test_an_application_follows_generations_and_confirms_trials(
    world, writer, applications, overlap
):
    policy = msgspec.structs.replace(QUICK, overlap=overlap)
    agent = world.agent(extra=ALONE)
    world.manager.deploy("dev-1", writer.add(seed=1, version="1"), release="v1", policy=policy)
    world.manager.wait_state("dev-1", "TRIAL")
    application = applications(agent)
    first = application.infer(*(f"a-{n}" for n in range(8)))
    assert {each["version"] for each in first} == {"1"}
    assert all(each["counted"] for each in first)
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    world.manager.deploy("dev-1", writer.add(seed=2, version="2"), release="v2", policy=policy)
    world.manager.wait_state("dev-1", "TRIAL", release="v2")

    def newer():
        return application.infer(None)[0]["version"] == "2"

    wait_for(newer, what="the application runs v2")
    application.infer(*(f"b-{n}" for n in range(8)))
    world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
    assert not application.infer("a-3")[0]["counted"]  # counted once, whatever runs by now
    _counted(world, len(application.answered) - 1)
    assert application.end() == 0
    assert agent.infer(None)[0] == 404


def test_applications_killed_on_trial_cost_tries_and_roll_it_back(world, writer, applications):
    agent, application = _confirmed(world, writer, applications, ALONE)
    bad = writer.add(seed=2, version="2")
    world.manager.deploy("dev-1", bad, release="v2", policy=LONG_TRIAL)
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    for _ in range(LONG_TRIAL.trial_tries):
        _runs(application, "2")
        assert bad not in world.manager.model("dev-1").failed
        application.kill()
        pid = application.process.pid
        _told(world, f"pid {pid} ended without a goodbye")
        application = applications(agent)
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "crash loop" in model.failed[bad].reason
    assert "without a goodbye" in model.failed[bad].reason
    _runs(application, "1")
    assert world.manager.reported["dev-1"].health.workers_ended == LONG_TRIAL.trial_tries


def test_ends_in_order_and_ends_of_a_proven_bundle_cost_nothing(world, writer, applications):
    agent, application = _confirmed(world, writer, applications)
    application.kill()  # proven: not the bundle's fault
    second = writer.add(seed=2, version="2")
    world.manager.deploy("dev-1", second, release="v2", policy=LONG_TRIAL)
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    sleeping = applications(agent)
    assert agent.stop() == 0
    agent.start()
    assert sleeping.infer(None)[0]["version"] == "2"
    assert sleeping.end() == 0  # the interpreter ends, nobody called close
    tries = agent.cli("slots", "--json").stdout
    assert f'"tries": {LONG_TRIAL.trial_tries - 1}' in tries
    assert second not in world.manager.model("dev-1").failed


def test_an_application_goes_on_without_an_agent_and_nothing_is_lost(world, writer, applications):
    agent, application = _confirmed(world, writer, applications)
    agent.kill()
    lonely = application.infer(*(f"alone-{n}" for n in range(300)))
    assert all(each["counted"] and each["version"] == "1" for each in lonely)
    assert not lonely[-1]["connected"]
    agent.start()
    wait_for(lambda: application.infer(None)[0]["connected"], what="it comes back")
    application.infer(*(f"again-{n}" for n in range(20)))
    _counted(world, len(application.answered))
    world.manager.deploy("dev-1", writer.add(seed=2, version="2"), release="v2")
    _runs(application, "2")
    application.infer(*(f"new-{n}" for n in range(8)))
    world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
    _counted(world, len(application.answered))


def test_a_flood_killed_in_the_middle_is_counted_exactly(world, writer, applications):
    agent, application = _confirmed(world, writer, applications)
    others = [applications(agent) for _ in range(2)]
    for number, each in enumerate(others):
        each.order(do="flood", prefix=f"f{number}")
    seen = [[each.read()["id"] for _ in range(50)] for each in others]
    for each, ids in zip(others, seen, strict=True):
        each.process.kill()
        ids += [line["id"] for line in _rest(each)]
    own = len(application.answered)
    application.infer(*(f"b-{n}" for n in range(30)))  # nobody else is disturbed
    answered = sum(len(ids) for ids in seen)
    # Each of the two had at most one call between counting and saying so.
    floor = own + 30 + answered
    wait_for(lambda: world.manager.counted >= floor, what=f"{floor}: {world.manager.counted}")
    assert floor <= world.manager.counted <= floor + len(others)
    totals = wait_for(lambda: _settled(agent), what="everything is acknowledged")
    assert totals["produced"] == totals["acked"] == world.manager.counted


def _rest(application) -> list[dict]:
    lines = application.process.stdout.read().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _settled(agent):
    totals = agent.status()["totals"]
    return totals if totals["undrained"] == totals["live"] == 0 else None


def test_what_cannot_be_loaded_leaves_the_old_one_running_and_flagged(world, writer, applications):
    agent, application = _confirmed(world, writer, applications, ALONE)
    second = writer.add(seed=2, version="2")
    world.manager.deploy("dev-1", second, release="v2", policy=LONG_TRIAL)
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    model = LayoutReader(agent.state).manifest(second).layers[0].digest
    path = agent.state / "blobs" / "sha256" / digests.hex_of(model)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    def stale():
        answer = application.infer(None)[0]
        assert answer["version"] == "1"
        return answer["flags"] & Flags.STALE

    wait_for(stale, what="it says that it is behind")
    _told(world, "cannot load it")
    wait_for(lambda: '"tries": 1' in agent.cli("slots", "--json").stdout, what="a try was spent")
    path.write_bytes(whole)
    world.manager.deploy("dev-1", second, release="v2b", policy=LONG_TRIAL)
    _runs(application, "2")
    assert application.infer(None)[0]["flags"] == 0


def test_a_model_that_is_gone_is_not_answered_for(world, writer, applications):
    agent, application = _confirmed(world, writer, applications)
    refused = AppProcess(state_dir=agent.state, model="other")
    assert refused.process.wait(30) == 1
    refused.kill()
    removed = world.manager.remove("dev-1")
    wait_for(lambda: world.manager.reported["dev-1"].gen_observed >= removed, what="removed")

    def silent():
        answer = application.infer(None)[0]
        return answer.get("error") == "NotServingError" and "EMPTY" in answer["message"]

    wait_for(silent, what="it answers no more")
    world.manager.deploy("dev-1", writer.add(seed=2, version="2"), release="v2")
    _runs(application, "2")
