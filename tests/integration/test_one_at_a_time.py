"""A device without memory for two bundles (policy.overlap): one worker at a time, always."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import pytest
from agentkit import bad_models
from agentkit.processes import workers
from agentkit.world import QUICK, wait_for

from edgekit.contracts.shadow import Shadow, ShadowMode

pytestmark = pytest.mark.integration
ALONE = msgspec.structs.replace(QUICK, overlap=False)
REPLAY = Shadow(
    mode=ShadowMode.REPLAY,
    share=1.0,
    inferences_min=20,
    seconds_min=0.2,
    agreement_min=0.95,
    late_ratio_max=1e6,
    memory_bytes_min=0,
)


class Watch:
    """How many workers hold a model at once; processes that end hold none any more."""

    def __init__(self, agent) -> None:
        self.most = 0
        self._agent = agent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.most = max(self.most, sum(_alive(pid) for pid in workers(self._agent)))
            time.sleep(0.001)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.most


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except OSError:
        return False


class Client:
    """Asks all the time; 503 is an answer, too, and is asked again."""

    def __init__(self, agent) -> None:
        self.versions: list[str] = []
        self.statuses: set[int] = set()
        self._agent = agent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            status, body = self._agent.infer(f"c-{number}")
            self.statuses.add(status)
            if status == 200:
                self.versions.append(body["model_version"])
                number += 1
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def running(world, writer):
    agent = world.agent()
    world.manager.deploy("dev-1", writer.add(seed=1, version="1"), release="v1", policy=ALONE)
    world.manager.wait_state("dev-1", "TRIAL")
    client = Client(agent)
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    watch = Watch(agent)
    yield agent, client, watch
    client.stop()
    watch.stop()


def _goes_on(client, version: str) -> None:
    floor = len(client.versions) + 10
    wait_for(lambda: len(client.versions) > floor, what="answers go on")
    assert set(client.versions[floor:]) == {version}


@pytest.mark.parametrize("shadow", [None, REPLAY], ids=["self-test", "replay"])
def test_an_update_never_holds_two(world, writer, running, shadow):
    _, client, watch = running
    policy = msgspec.structs.replace(ALONE, shadow=shadow)
    bundle = writer.add(seed=1, version="2")
    world.manager.deploy("dev-1", bundle, release="v2", policy=policy)
    # It is loaded twice, on idle cores for up to 20 s each: beside other tests none is idle.
    world.manager.wait_state("dev-1", "CONFIRMED", release="v2", timeout_s=180.0)
    _goes_on(client, "2")
    assert watch.stop() == 1
    client.stop()  # or what is counted runs after what is answered
    assert client.statuses == {200, 503}  # the price, and nothing else
    wait_for(lambda: world.manager.counted >= len(client.versions), what="counted")


def test_one_that_fails_its_self_test_leaves_what_served(world, writer, running):
    _, client, watch = running
    bad = writer.add(seed=2, version="2", golden_seed=3)
    world.manager.deploy("dev-1", bad, release="v2", policy=ALONE)
    wait_for(lambda: bad in world.manager.model("dev-1").failed, what="refused")
    assert "golden set" in world.manager.model("dev-1").failed[bad].reason
    _goes_on(client, "1")
    assert watch.stop() == 1


def test_one_that_hangs_on_trial_is_rolled_back(world, writer, running):
    agent, client, watch = running
    bad = writer.add(seed=2, version="2", files={"model": bad_models.hangs()})
    policy = msgspec.structs.replace(ALONE, stuck_s_min=1.0, confirm_s_min=600.0)
    world.manager.deploy("dev-1", bad, release="v2", policy=policy)
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    wait_for(lambda: agent.infer(None)[0] == 200, what="v2 serves")
    agent.infer("hang", (bad_models.TRIGGER + 1, 0, 0, 0))
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "did not end within" in model.failed[bad].reason
    _goes_on(client, "1")
    assert watch.stop() == 1


def test_an_agent_that_was_killed_starts_with_one(world, running):
    agent, client, watch = running
    client.stop()
    watch.stop()
    agent.kill()
    again = world.agent()
    watch = Watch(again)
    wait_for(lambda: again.infer("after")[0] == 200, what="serves again")
    assert watch.stop() == 1
