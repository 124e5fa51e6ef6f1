"""Slots that are images, in a real Docker Engine: rollout, rollback, kills, a restarted engine.

Not among the tests of ``make test``: root, an engine and a base are needed. ``make engine``
prepares them and names their folder in EDGEKIT_ENGINE_WORK.
"""

from __future__ import annotations

import threading
import time

import pytest
from agentkit.world import QUICK, World, wait_for
from enginekit.engine import Images
from packagekit.servers import serving

from edgekit.contracts.messages import SlotEvent
from edgekit_runtime import config
from edgekit_runtime.containers.launcher import AGENT_LABEL
from edgekit_runtime.containers.slots import owner_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def images(tmp_path_factory, work):
    folder = tmp_path_factory.mktemp("images")
    with serving(folder / "store") as registry:
        found = Images(work, folder, registry.host)
        yield {
            "v1": found.make(1, "1"),
            "v2": found.make(2, "2"),
            "v3": found.make(3, "3", golden_seed=4),
        }


@pytest.fixture
def world(tmp_path, engine):
    (tmp_path / "layout").mkdir()
    world = World(tmp_path, tmp_path / "layout")
    yield world
    world.close()


class Client:
    """Asks without pause; remembers every answer that was not one."""

    def __init__(self, agent) -> None:
        self.agent, self.answered, self.failed = agent, 0, []
        self.versions: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            status, body = self.agent.infer(f"c-{self.answered}")
            if status == 200:
                self.answered += 1
                self.versions.add(body["model_version"])
            else:
                self.failed.append((status, body))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def _agent(world, engine):
    return world.agent(extra=f'[containers]\nengine = "{engine.url}"\n')


def _deploy(world, images, release, **options):
    digest, image = images[release]
    world.manager.deploy("dev-1", digest, release=release, image=image, **options)


def _owner(agent):
    return owner_of(config.load(agent.config, {}))


def _ours(engine, agent):
    """Its containers, running or not."""
    return engine.docker("ps", "-aq", "--filter", f"label={AGENT_LABEL}={_owner(agent)}").split()


def _slots(engine, agent):
    """Images it calls its own."""
    names = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    own = f"edgekit-slot/{_owner(agent)}:"
    return {name.removeprefix(own) for name in names if name.startswith(own)}


def _hex(images, *releases):
    return {images[release][1].digest.removeprefix("sha256:") for release in releases}


def _confirm(world, agent, release):
    world.manager.wait_state("dev-1", "TRIAL", release=release)
    wait_for(lambda: agent.infer(None)[0] == 200, what=f"{release} serves")
    for _ in range(QUICK.confirm_inferences_min):
        agent.infer(None)
    world.manager.wait_state("dev-1", "CONFIRMED", release=release)


def test_a_rollout_and_a_failed_one_cost_no_request(world, engine, images):
    agent = _agent(world, engine)
    _deploy(world, images, "v1")
    model = world.manager.wait_state("dev-1", "TRIAL", release="v1")
    assert model.active.image.digest == images["v1"][1].digest
    assert model.fetched_bytes > 0
    assert len(_ours(engine, agent)) == 1
    with Client(agent) as client:
        world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
        _deploy(world, images, "v2")
        world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
        wait_for(lambda: "2" in client.versions, what="v2 answers")
        before = client.answered
        _deploy(world, images, "v3")
        model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v2")
        wait_for(lambda: client.answered > before + 100, what="v2 answers on")
    assert "golden" in model.failed[images["v3"][0]].reason
    assert client.failed == []
    assert client.versions == {"1", "2"}
    wait_for(lambda: world.manager.counted >= client.answered, what="all counted")
    assert world.manager.counted == client.answered
    # What no slot refers to is gone: the refused image, and the containers of v1 and v3.
    wait_for(
        lambda: _slots(engine, agent) == _hex(images, "v1", "v2"),
        what=f"pruned: {_slots(engine, agent)}",
    )
    wait_for(lambda: len(_ours(engine, agent)) == 1, what="one container")
    events = [e for e in world.manager.records if isinstance(e, SlotEvent)]
    assert [e.state.value for e in events][-1] == "ROLLED_BACK"


def test_an_agent_that_is_killed_at_any_moment_finds_its_way(world, engine, images):
    agent = _agent(world, engine)
    _deploy(world, images, "v1")
    _confirm(world, agent, "v1")
    wanted = "v1"
    for pause_s in (0.0, 0.2, 0.6, 1.2, 1.8):
        wanted = "v2" if wanted == "v1" else "v1"
        _deploy(world, images, wanted)
        time.sleep(pause_s)  # a different step each time; which one does not matter
        agent.kill()
        agent.start()
        # An active container serves again before anything is asked of the network.
        wait_for(lambda: agent.infer(None)[0] == 200, what="serves after the kill")
        with Client(agent):
            world.manager.wait_state("dev-1", "CONFIRMED", release=wanted)
    wait_for(lambda: len(_ours(engine, agent)) == 1, what="one container; no orphan")
    assert world.manager.model("dev-1").failed == {}
    assert agent.stop() == 0
    assert _ours(engine, agent) == []


def test_a_container_that_is_killed_is_started_again(world, engine, images):
    agent = _agent(world, engine)
    _deploy(world, images, "v1")
    _confirm(world, agent, "v1")
    (container,) = _ours(engine, agent)
    engine.docker("kill", container)
    wait_for(lambda: agent.infer(None)[0] == 200, what="serves again")
    assert world.manager.model("dev-1").state.value == "CONFIRMED"
    wait_for(lambda: len(_ours(engine, agent)) == 1, what="one container")
    assert container not in _ours(engine, agent)[0]


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_restarted_engine_costs_no_trial_and_no_rollback(world, engine, images, kill):
    agent = _agent(world, engine)
    _deploy(world, images, "v1")
    _confirm(world, agent, "v1")
    slow = {
        **{name: getattr(QUICK, name) for name in QUICK.__struct_fields__},
        "confirm_s_min": 1e9,
    }
    _deploy(world, images, "v2", policy=type(QUICK)(**slow))
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    for _ in range(3):  # more often than a trial has tries left
        wait_for(lambda: agent.infer(None)[0] == 200, what="v2 serves", timeout_s=90)
        engine.stop(kill=kill)
        engine.start()
    wait_for(lambda: agent.infer(None)[0] == 200, what="v2 serves", timeout_s=90)
    assert agent.infer(None)[1]["model_version"] == "2"
    model = world.manager.model("dev-1")
    assert (model.state.value, model.failed) == ("TRIAL", {})
    wait_for(lambda: len(_ours(engine, agent)) == 1, what="one container", timeout_s=60)
