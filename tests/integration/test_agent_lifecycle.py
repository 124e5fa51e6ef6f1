"""Real agent processes against a real broker: deploy, count, kill, roll back, stay alive."""

from __future__ import annotations

import threading

import pytest
from agentkit import layouts
from agentkit.world import wait_for

pytestmark = pytest.mark.integration


def _ledger(agent, prefix: str, count: int) -> set[str]:
    answered = set()
    for number in range(count):
        name = f"{prefix}-{number}"
        status, body = agent.infer(name)
        assert status == 200, body
        assert body["id"] == name
        answered.add(name)
    return answered


def test_deploys_confirms_counts_and_rolls_back_from_what_it_holds(world, writer):
    v1, v2 = writer.add(seed=1, version="1"), writer.add(seed=2, version="2")
    agent = world.agent()
    assert agent.get("/v2/health/ready")[0] == 503
    world.manager.deploy("dev-1", v1, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    answered = _ledger(agent, "a", 10)
    model = world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    assert model.fetched_bytes > 0
    assert model.active.version == "1"

    world.manager.deploy("dev-1", v2, release="v2")
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    answered |= _ledger(agent, "b", 10)
    model = world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
    assert model.fallback.digest == v1

    fetches = len(world.artifacts.requests)
    world.manager.deploy("dev-1", v1, release="v1")
    model = world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    assert model.fetched_bytes == 0
    assert len(world.artifacts.requests) == fetches
    answered |= _ledger(agent, "c", 10)
    wait_for(lambda: world.manager.counted == len(answered), what="all counted")
    by_digest = {}
    for window in world.manager.windows:
        by_digest[window.digest] = by_digest.get(window.digest, 0) + window.n
    assert by_digest == {v1: 20, v2: 10}
    assert agent.stop() == 0
    wait_for(lambda: not world.manager.presence["dev-1"].online, what="offline")


def test_sigkill_under_load_counts_every_answered_id_exactly_once(world, writer):
    digest = writer.add()
    agent = world.agent()
    world.manager.deploy("dev-1", digest, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    answered: set[str] = set()
    lock = threading.Lock()
    stop = threading.Event()

    def client(name: str) -> None:
        number = 0
        while not stop.is_set():
            request = f"{name}-{number}"
            while not stop.is_set():
                status, _ = agent.infer(request)  # in doubt: the same id again until answered
                if status == 200:
                    with lock:
                        answered.add(request)
                    break
                stop.wait(0.02)
            number += 1

    threads = [threading.Thread(target=client, args=(f"c{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    # Killed on trial it would be rolled back as a crash loop, as it should.
    world.manager.wait_state("dev-1", "CONFIRMED")
    for round_number in range(3):
        floor = len(answered) + 60
        wait_for(lambda floor=floor: len(answered) >= floor, what="load")
        world.manager.acking = round_number != 1  # once, with frames that are never committed
        agent.kill()
        agent.start()
    world.manager.acking = True
    floor = len(answered) + 60
    wait_for(lambda: len(answered) >= floor, what="load after the kills")
    stop.set()
    for thread in threads:
        thread.join()
    # A request cut off by `stop` may have been counted without its answer being seen.
    for name in range(3):
        numbers = [int(r.split("-")[1]) for r in answered if r.startswith(f"c{name}-")]
        request = f"c{name}-{max(numbers) + 1}"
        assert agent.infer(request)[0] == 200
        answered.add(request)
    wait_for(
        lambda: world.manager.counted >= len(answered),
        what=f"{len(answered)} counted, got {world.manager.counted}",
    )
    assert agent.stop() == 0
    assert world.manager.counted == len(answered)
    totals = agent.status()["totals"]
    parts = totals["acked"] + totals["evicted"] + totals["live"] + totals["undrained"]
    assert totals["produced"] == parts == len(answered)


def test_corrupted_blob_is_refused_quarantined_and_retried_only_with_a_token(world, writer):
    good, bad = writer.add(seed=1, version="1"), writer.add(seed=2, version="2")
    agent = world.agent()
    world.manager.deploy("dev-1", good, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    _ledger(agent, "a", 10)
    world.manager.wait_state("dev-1", "CONFIRMED")
    model_blob = layouts.model_bytes(2)
    name, _ = writer.blob(model_blob)
    path = writer.root / "blobs" / "sha256" / name.removeprefix("sha256:")
    path.write_bytes(model_blob[:-1] + bytes([model_blob[-1] ^ 1]))
    world.manager.deploy("dev-1", bad, release="v2")
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "digest" in model.failed[bad].reason
    assert agent.infer("still")[0] == 200

    path.write_bytes(model_blob)
    gen = world.manager.deploy("dev-1", bad, release="v2")
    wait_for(lambda: world.manager.reported["dev-1"].gen_observed == gen, what="observed")
    assert "failed here" in world.manager.reported["dev-1"].note
    world.manager.deploy("dev-1", bad, release="v2", token="again")
    world.manager.wait_state("dev-1", "TRIAL", release="v2")


def test_golden_mismatch_never_serves(world, writer):
    good = writer.add(seed=1, version="1")
    bad = writer.add(seed=2, version="2", golden_seed=3)
    agent = world.agent()
    world.manager.deploy("dev-1", good, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    _ledger(agent, "a", 10)
    world.manager.wait_state("dev-1", "CONFIRMED")
    world.manager.deploy("dev-1", bad, release="v2")
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "golden" in model.failed[bad].reason
    assert agent.infer("x")[1]["model_version"] == "1"


def test_switching_never_fails_a_request(world, writer):
    versions = [writer.add(seed=1, version="1"), writer.add(seed=2, version="2")]
    agent = world.agent()
    world.manager.deploy("dev-1", versions[0], release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    failed, stop = [], threading.Event()

    def client() -> None:
        while not stop.is_set():
            status, body = agent.infer(None)
            if status != 200:
                failed.append((status, body))

    thread = threading.Thread(target=client)
    thread.start()
    for number in (1, 0, 1):
        release = f"v{number + 1}"
        world.manager.wait_state("dev-1", "CONFIRMED")
        world.manager.deploy("dev-1", versions[number], release=release)
        world.manager.wait_state("dev-1", "CONFIRMED", release=release)
    stop.set()
    thread.join()
    assert failed == []


def test_broker_down_and_up_loses_nothing(world, writer):
    digest = writer.add()
    agent = world.agent()
    world.manager.deploy("dev-1", digest, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    answered = _ledger(agent, "a", 20)
    world.broker.kill()
    answered |= _ledger(agent, "b", 20)
    status = agent.status()
    assert status["alive"]
    world.broker.start()
    answered |= _ledger(agent, "c", 20)
    wait_for(lambda: world.manager.counted == len(answered), what="all counted")


def test_starts_and_serves_without_broker_and_manager(world, writer):
    digest = writer.add()
    agent = world.agent()
    world.manager.deploy("dev-1", digest, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    agent.stop()
    world.broker.kill()
    agent.start()
    wait_for(lambda: agent.infer("offline")[0] == 200, what="served offline")
    assert agent.get("/v2/models/meter/ready")[0] == 200
