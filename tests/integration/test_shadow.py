"""A candidate in the shadow of what serves: real agents, workers and broker, a client's ledger."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import msgspec
import pytest
from agentkit import bad_models
from agentkit.processes import workers
from agentkit.world import QUICK, wait_for

from edgekit.contracts import codec
from edgekit.contracts.shadow import Expectation, Shadow, ShadowMode

pytestmark = pytest.mark.integration
SHADOW = Shadow(
    share=1.0,
    inferences_min=20,
    seconds_min=0.2,
    agreement_min=0.95,
    late_ratio_max=1e6,  # a test machine is as late as it likes
    memory_bytes_min=0,
)
LONG = msgspec.structs.replace(SHADOW, inferences_min=10**6)


class Client:
    """Asks all the time; its ledger says what was answered, and by whom."""

    def __init__(self, agent, row=(0.1, 0.2, 0.3, 0.4)) -> None:
        self.answered: dict[str, str] = {}
        self.failed: list[tuple[int, object]] = []
        self._agent, self._row = agent, row
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            status, body = self._agent.infer(f"c-{number}", self._row)
            if status == 200:
                self.answered[f"c-{number}"] = body["model_version"]
                number += 1
            else:
                self.failed.append((status, body))
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _serves_first(world, writer):
    digest = writer.add(seed=1, version="1")
    agent = world.agent()
    world.manager.deploy("dev-1", digest, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    client = Client(agent)
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    return agent, client


def _offer(world, digest, shadow, **policy) -> None:
    changed = msgspec.structs.replace(QUICK, shadow=shadow, **policy)
    world.manager.deploy("dev-1", digest, release="v2", policy=changed)


def _ledger_holds(world, client) -> None:
    """Every answer is counted once, and samples never are."""
    client.stop()
    assert client.failed == []
    wait_for(lambda: world.manager.counted >= len(client.answered), what="all counted")
    assert world.manager.counted == len(client.answered)


def _shadowed(world) -> tuple[int, int]:
    windows = world.manager.windows
    return sum(w.shadowed for w in windows), sum(w.agreed for w in windows)


@pytest.mark.parametrize("mode", list(ShadowMode))
def test_a_candidate_that_agrees_takes_over_after_its_shadow(world, writer, mode):
    _agent, client = _serves_first(world, writer)
    same = writer.add(seed=1, version="2")
    _offer(world, same, msgspec.structs.replace(SHADOW, mode=mode))
    world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
    _ledger_holds(world, client)
    wait_for(lambda: _shadowed(world)[0] >= SHADOW.inferences_min, what="figures arrive")
    shadowed, agreed = _shadowed(world)
    assert shadowed == agreed
    of_shadow = [w for w in world.manager.windows if w.shadowed]
    assert {w.digest for w in of_shadow} == {same}
    assert {w.n for w in of_shadow} == {0}


@pytest.mark.parametrize("mode", list(ShadowMode))
def test_a_candidate_that_disagrees_is_refused_and_never_answers(world, writer, mode):
    _agent, client = _serves_first(world, writer)
    other = writer.add(seed=3, version="2")  # answers another class to the client's row
    _offer(world, other, msgspec.structs.replace(SHADOW, mode=mode))
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "agrees with what serves in 0 of" in model.failed[other].reason
    _ledger_holds(world, client)
    assert set(client.answered.values()) == {"1"}


def test_a_request_sent_again_says_that_the_candidate_disagreed(world, writer):
    agent, client = _serves_first(world, writer)
    client.stop()
    other = writer.add(seed=3, version="2")
    _offer(world, other, LONG)
    world.manager.wait_state("dev-1", "SHADOW")
    ids = (f"t-{number}" for number in itertools.count())  # the first may come before it listens

    def flags():
        name = next(ids)
        assert agent.infer(name)[1]["parameters"]["flags"] == []
        time.sleep(0.05)
        return agent.infer(name)[1]["parameters"]["flags"]

    wait_for(lambda: flags() == ["shadow_disagreed"], what="the candidate's word")


def test_without_a_bound_in_the_policy_the_bundle_says_what_to_expect(world, writer):
    _agent, client = _serves_first(world, writer)
    ours = msgspec.structs.replace(SHADOW, agreement_min=None)
    silent = writer.add(seed=1, version="2")
    _offer(world, silent, ours)
    model = wait_for(
        lambda: silent in world.manager.model("dev-1").failed and world.manager.model("dev-1"),
        what="refused",
    )
    assert "does not say what to expect" in model.failed[silent].reason
    expected = codec.encode(Expectation(n=100, agreement=0.99, agreement_min=0.95))
    said = writer.add(seed=1, version="3", files={"shadow": expected})
    _offer(world, said, ours)
    world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
    _ledger_holds(world, client)


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_candidate_that_ends_or_hangs_is_refused_and_nobody_waits(world, writer, how):
    agent, client = _serves_first(world, writer)
    model = {"model": bad_models.hangs()} if how == "hangs" else {}
    bad = writer.add(seed=2, version="2", files=model)
    _offer(world, bad, LONG, stuck_s_min=1.0)
    world.manager.wait_state("dev-1", "SHADOW")
    if how == "hangs":
        status, body = agent.infer("hang", (bad_models.TRIGGER + 1, 0, 0, 0))
        assert (status, body["model_version"]) == (200, "1")
        client.answered["hang"] = "1"
    else:
        wait_for(lambda: len(workers(agent)) == 2, what="both are loaded")
        os.kill(max(workers(agent)), signal.SIGKILL)
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    why = {"killed": "SIGKILL", "hangs": "did not end within"}[how]
    assert why in model.failed[bad].reason
    before = len(client.answered)
    wait_for(lambda: len(client.answered) > before + 20, what="answers go on")
    _ledger_holds(world, client)
    wait_for(lambda: len(workers(agent)) == 1, what="the candidate is unloaded")


def test_too_little_traffic_is_said_and_never_passed(world, writer):
    agent, client = _serves_first(world, writer)
    client.stop()
    second = writer.add(seed=1, version="2")
    quiet = msgspec.structs.replace(SHADOW, unproven_after_s=0.5)
    _offer(world, second, quiet)
    wait_for(
        lambda: (m := world.manager.model("dev-1")).state.value == "SHADOW" and m.unproven,
        what="unproven is reported",
    )
    assert agent.infer(None)[1]["model_version"] == "1"


def test_an_agent_killed_in_the_middle_goes_on_where_the_ring_stands(world, writer):
    agent, client = _serves_first(world, writer)
    second = writer.add(seed=1, version="2")
    _offer(world, second, LONG)
    wait_for(lambda: _shadowed(world)[0] >= 10, what="samples are compared")
    client.stop()
    agent.kill()
    agent.start()

    def reported() -> int:
        model = world.manager.model("dev-1")
        return model.shadow.n if model.shadow is not None else 0

    wait_for(lambda: reported() >= 10, what="earlier figures count")
    before = reported()
    again = Client(agent)
    wait_for(lambda: reported() > before, what="and newer ones")
    again.stop()
    assert world.manager.model("dev-1").state.value == "SHADOW"
