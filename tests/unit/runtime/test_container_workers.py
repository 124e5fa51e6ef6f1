"""Workers in containers: started, ended, described and cleared away, with an engine in memory."""

from __future__ import annotations

import msgspec
import pytest
from agentkit.engines import MemoryEngine
from agentkit.world import wait_for

from edgekit.contracts import image as labels
from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.engine.ports import EngineAwayError
from edgekit_runtime.containers import launcher as module
from edgekit_runtime.containers.launcher import AGENT_LABEL, ContainerLauncher
from edgekit_runtime.containers.slots import ImageSlots
from edgekit_runtime.errors import UnsuitableError, WorkerEndedError
from edgekit_runtime.supervision import EndKind
from edgekit_runtime.workers import WorkerHost, WorkerLimits

BUNDLE = "sha256:" + "b" * 64


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "AWAY_S", 0.01)
    return MemoryEngine()


@pytest.fixture
def parts(engine, tmp_path):
    launcher = ContainerLauncher(engine, tmp_path / "containers", "me")
    slots = ImageSlots(engine, launcher, "me")
    limits = WorkerLimits(
        threads=1,
        cores=(),
        body_bytes_max=1000,
        bodies_bytes_max=1000,
        requests_max=8,
        connections_max=8,
        client_s_max=1.0,
    )
    host = WorkerHost(tmp_path, limits, containers=launcher)
    return launcher, slots, host


def _ref(image, **changes):
    ref = SlotRef(digest=BUNDLE, version="", target="x86-64-v3", release="r", rollout="o", wave=0)
    return msgspec.structs.replace(ref, image=image, **changes)


def _fetched(engine, slots, **changed):
    ref = _ref(engine.publish("1", BUNDLE, **changed))
    slots.fetch(ref, None)
    return ref


def test_a_worker_is_loaded_in_a_container_and_leaves_nothing(engine, parts, tmp_path):
    _, slots, host = parts
    ref = _fetched(engine, slots)
    model = host.load("meter", ref, Policy(worker_bytes_max=5_000_000), tested=True)
    (container,) = engine.running.values()
    assert container.spec.command == ("worker", "/run/edgekit/s")
    assert container.spec.memory_bytes_max == 5_000_000
    assert container.spec.labels[AGENT_LABEL] == "me"
    assert (model.manifest.version, model.failure) == ("1", None)
    model.close()
    wait_for(lambda: engine.running == {}, what="the container is gone")
    wait_for(lambda: list((tmp_path / "containers").iterdir()) == [], what="its folder too")
    host.close()


def test_closing_the_host_ends_and_removes_its_containers(engine, parts):
    _, slots, host = parts
    host.load("meter", _fetched(engine, slots), Policy(), tested=False)
    host.close()
    assert engine.running == {}


@pytest.mark.parametrize(
    ("behave", "error", "text"),
    [
        ("refuse", UnsuitableError, "golden set"),
        ("exit", WorkerEndedError, "before it connected, its worker ended with exit code 1: last"),
        ("gone", BadInputError, "no such image"),
    ],
)
def test_what_cannot_be_loaded_leaves_no_container(engine, parts, behave, error, text):
    _, slots, host = parts
    ref = _fetched(engine, slots)
    engine.behave = behave
    with pytest.raises(error, match=text):
        host.load("meter", ref, Policy(), tested=True)
    wait_for(lambda: engine.running == {}, what="nothing runs")


def test_a_container_that_never_connects_is_ended(engine, parts, monkeypatch):
    _, slots, host = parts
    monkeypatch.setattr(module, "CONNECT_S_MAX", 0.05)
    ref = _fetched(engine, slots)
    engine.behave = "silent"
    with pytest.raises(WorkerEndedError, match="did not connect") as caught:
        host.load("meter", ref, Policy(), tested=True)
    assert caught.value.ending.kind is EndKind.STUCK
    wait_for(lambda: engine.running == {}, what="nothing runs")


@pytest.mark.parametrize(
    ("code", "out_of_memory", "kind"),
    [
        (139, False, EndKind.CRASH),
        (137, False, EndKind.CRASH),
        (137, True, EndKind.MEMORY),
        (6, False, EndKind.MEMORY),
    ],
)
def test_how_a_container_ended_is_told(engine, parts, code, out_of_memory, kind):
    _, slots, host = parts
    model = host.load("meter", _fetched(engine, slots), Policy(), tested=False)
    next(iter(engine.running.values())).end(code, out_of_memory=out_of_memory)
    ending = wait_for(lambda: model.failure, what="its end is noticed")
    assert ending.kind is kind
    host.close()


def test_an_engine_that_goes_away_is_not_the_models_fault(engine, parts):
    launcher, slots, host = parts
    model = host.load("meter", _fetched(engine, slots), Policy(), tested=False)
    launcher.sweep()
    model._process.pid = 0  # this engine's workers are threads of ours, and we live on
    engine.away = True
    next(iter(engine.running.values())).end(137)
    ending = wait_for(lambda: model.failure, what="its end is noticed")
    assert ending.kind is EndKind.OUTSIDE
    wait_for(lambda: launcher.untidy, what="that a container may be left is remembered")
    with pytest.raises(EngineAwayError):
        host.load("meter", _ref(engine.publish("1", BUNDLE)), Policy(), tested=False)
    engine.away = False
    launcher.sweep()
    assert (engine.running, launcher.untidy) == ({}, False)
    host.close()


def test_only_containers_of_an_earlier_self_are_swept(engine, parts, tmp_path):
    _, slots, host = parts
    ref = _fetched(engine, slots)
    host.load("meter", ref, Policy(), tested=False)
    first = host._started[0]
    before = set(engine.running)
    other = ContainerLauncher(engine, tmp_path / "other", "somebody")
    engine.names["edgekit-slot/somebody:" + "1" * 64] = engine.registry[ref.content]
    second = other.start("meter", ref, Policy())
    again = ContainerLauncher(engine, tmp_path / "containers", "me")  # after a SIGKILL
    assert again.untidy
    again.sweep()
    assert not before & set(engine.running)
    assert len(engine.running) == 1
    for worker in (first, second):
        worker.hang_up()
        worker.wait()


def test_an_image_is_pulled_once_by_digest_and_forgotten_when_stale(engine, parts):
    _, slots, _ = parts
    ref = _ref(engine.publish("1", BUNDLE))
    assert slots.fetch(ref, None) == 100
    assert slots.fetch(ref, None) == 0
    assert slots.check("meter", ref) == "1"
    slots.tidy([ref.content])
    assert engine.names == {}
    with pytest.raises(BadInputError, match="no longer"):
        slots.check("meter", ref)


def test_without_a_registry_an_image_waits(engine, parts):
    _, slots, _ = parts
    image = msgspec.structs.replace(engine.publish("1", BUNDLE), registry="")
    with pytest.raises(UnavailableError, match="no registry"):
        slots.fetch(_ref(image), None)
    slots.fetch(_ref(image), "http://manager.test:8470")
    assert any(name.startswith("manager.test:8470/meter@") for name in engine.names)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({labels.BUNDLE_LABEL: "sha256:" + "0" * 64}, "label edgekit.bundle"),
        ({labels.TARGET_LABEL: "rpi5"}, "label edgekit.target"),
        ({labels.TITLE_LABEL: "other"}, "label org.opencontainers.image.title"),
        ({labels.WORKER_LABEL: "99"}, "its worker speaks 99"),
    ],
)
def test_an_image_of_something_else_is_refused(engine, parts, changed, text):
    _, slots, _ = parts
    with pytest.raises(UnsuitableError, match=text):
        slots.check("meter", _fetched(engine, slots, **changed))


def test_an_image_whose_worker_the_agent_no_longer_understands_is_never_started(engine, parts):
    _, slots, host = parts
    ref = _fetched(engine, slots, **{labels.WORKER_LABEL: "0"})
    with pytest.raises(UnsuitableError, match="its worker speaks 0"):
        host.load("meter", ref, Policy(), tested=False)  # active, before the agent was updated
    assert "start" not in engine.calls


def test_a_worker_that_starts_during_a_sweep_is_left_alone(engine, parts):
    launcher, slots, host = parts
    ref = _fetched(engine, slots)
    found = engine.containers

    def looked_at(label, value):
        before = found(label, value)
        host.load("meter", ref, Policy(), tested=False)
        return before + found(label, value)

    engine.containers = looked_at
    launcher.sweep()
    assert len(engine.running) == 1
    host.close()


def test_an_image_for_another_machine_is_refused(engine, parts):
    _, slots, _ = parts
    ref = _fetched(engine, slots)
    name = f"edgekit-slot/me:{'1' * 64}"
    engine.names[name] = type(engine.names[name])(
        id="x", architecture="arm64", labels=engine.names[name].labels
    )
    with pytest.raises(UnsuitableError, match="for arm64, this engine runs amd64"):
        slots.check("meter", ref)
