"""A candidate that answers a share of the requests: no request fails, each counts once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import msgspec
import pytest
from agentkit.processes import workers
from agentkit.world import QUICK, wait_for

from edgekit.contracts.shadow import Split
from edgekit_runtime.journal import hash_id
from edgekit_runtime.splitting import is_seconds

pytestmark = pytest.mark.integration
SHARE = 0.4
SPLIT = Split(share=SHARE, inferences_min=40, seconds_min=0.5)
LONG = msgspec.structs.replace(SPLIT, inferences_min=10**6)
OVERFLOWS = (3e38, 3e38, 3e38, 3e38)  # legal float32 that make the model answer NaN


class Clients:
    """Ask each id twice; a ledger of who answered what, and whether it was counted then."""

    def __init__(self, agent, count: int = 3) -> None:
        self.counted: Counter[str] = Counter()
        self.versions: dict[str, list[str]] = {}
        self.unnamed = 0
        self.failed: list[object] = []
        self._agent = agent
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(f"c{n}",), daemon=True) for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str) -> None:
        number = 0
        while not self._stop.is_set():
            request = f"{name}-{number}"
            number += 1
            for identity in (request, request, None):
                status, body = self._agent.infer(identity)
                with self._lock:
                    if status != 200:
                        self.failed.append((identity, status, body))
                    elif identity is None:
                        self.unnamed += 1
                    else:
                        self.counted[request] += body["parameters"]["counted"]
                        self.versions.setdefault(request, []).append(body["model_version"])
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return len(self.versions)


def _begin(world, writer, agent, split, **policy):
    second = writer.add(seed=2, version="2")
    changed = msgspec.structs.replace(QUICK, split=split, **policy)
    world.manager.deploy("dev-1", second, release="v2", policy=changed)
    return second


def _first(world, writer):
    first = writer.add(seed=1, version="1")
    agent = world.agent()
    world.manager.deploy("dev-1", first, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    clients = Clients(agent)
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    return agent, first, clients


def _both_answer(world, clients) -> None:
    def seen():
        newest = [v[-1] for v in list(clients.versions.values())[-40:]]
        return {"1", "2"} <= set(newest)

    try:
        wait_for(seen, what="both arms answer")
    except AssertionError as exc:
        told = world.manager.reported["dev-1"]
        raise AssertionError(f"{clients.failed[-3:]} of {clients.answered}; {told}") from exc


def _ledger_holds(world, clients, more: int = 0) -> None:
    clients.stop()
    assert clients.failed == []
    assert set(clients.counted.values()) == {1}
    total = clients.answered + clients.unnamed + more
    wait_for(lambda: world.manager.counted >= total, what=f"{total} counted")
    assert world.manager.counted == total


def test_a_split_ends_in_a_trial_and_every_request_counts_once(world, writer):
    agent, first, clients = _first(world, writer)
    second = _begin(world, writer, agent, SPLIT)
    world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
    floor = clients.answered + 20
    wait_for(lambda: clients.answered >= floor, what="answers go on")
    _ledger_holds(world, clients)
    by_digest = Counter()
    for window in world.manager.windows:
        by_digest[window.digest] += window.n
    assert by_digest[second] >= SPLIT.inferences_min
    assert by_digest[first] > 0
    wait_for(lambda: len(workers(agent)) == 1, what="the first arm's worker has ended")


def test_ids_decide_who_answers_and_a_withdrawn_split_fails_nobody(world, writer):
    agent, _, clients = _first(world, writer)
    _begin(world, writer, agent, LONG)
    _both_answer(world, clients)
    asked = {f"s-{n}": is_seconds(hash_id(f"s-{n}"), SHARE) for n in range(60)}
    for name, second in asked.items():
        status, body = agent.infer(name)
        assert (status, body["model_version"]) == (200, "2" if second else "1")
        label = agent.post("/v2/models/meter/feedback", {"id": name, "label": 0})
        assert label[0] == 200
    assert {True, False} == set(asked.values())
    world.manager.deploy("dev-1", world.manager.model("dev-1").active.digest, release="v1")
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    wait_for(lambda: len(workers(agent)) == 1, what="the second arm's worker has ended")
    for name in asked:  # answered again, counted no more, whoever had counted it
        status, body = agent.infer(name)
        assert (status, body["model_version"]) == (200, "1")
        assert body["parameters"]["counted"] is False
    _ledger_holds(world, clients, more=len(asked))
    assert sum(window.labelled for window in world.manager.windows) == len(asked)


def test_a_second_arm_that_answers_nan_is_refused_and_fails_nobody(world, writer):
    agent, _, clients = _first(world, writer)
    bad = _begin(world, writer, agent, LONG)
    _both_answer(world, clients)
    sent = 0

    def spoil() -> bool:
        nonlocal sent
        sent += agent.infer(None, OVERFLOWS)[0] == 200
        return bad in world.manager.model("dev-1").failed

    wait_for(spoil, what="refused")
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "in the split: NaN rate" in model.failed[bad].reason
    wait_for(lambda: len(workers(agent)) == 1, what="the second arm's worker has ended")
    _ledger_holds(world, clients, more=sent)


def test_a_second_arm_that_is_killed_is_refused_and_the_first_goes_on(world, writer):
    agent, _, clients = _first(world, writer)
    bad = _begin(world, writer, agent, LONG)
    _both_answer(world, clients)

    os.kill(max(workers(agent)), signal.SIGKILL)
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "SIGKILL" in model.failed[bad].reason
    floor = clients.answered + 20
    wait_for(lambda: clients.answered >= floor, what="answers go on")
    clients.stop()
    assert {status for _, status, _ in clients.failed} <= {503}
    failed = {identity for identity, _, _ in clients.failed}
    assert all(n == 1 for name, n in clients.counted.items() if name not in failed)


def test_the_first_arm_may_end_and_come_back_during_a_split(world, writer):
    agent, _, clients = _first(world, writer)
    _begin(world, writer, agent, LONG)
    _both_answer(world, clients)

    os.kill(min(workers(agent)), signal.SIGKILL)
    floor = clients.answered + 60
    wait_for(lambda: clients.answered >= floor, what="answers go on")
    _both_answer(world, clients)
    clients.stop()
    assert {status for _, status, _ in clients.failed} <= {503}
    failed = {identity for identity, _, _ in clients.failed}
    assert all(n == 1 for name, n in clients.counted.items() if name not in failed)
    assert world.manager.model("dev-1").state.value == "SHADOW"
