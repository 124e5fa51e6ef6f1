"""Several models on one device: each by itself, and those of a group together."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest
from agentkit import bad_models
from agentkit.world import QUICK, wait_for

pytestmark = pytest.mark.integration
NAMES = ("door", "meter")


def _ask(agent, model: str, request: str | None = None, first: float = 0.1):
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [first] * 4}
    body = {"inputs": [tensor]} | ({"id": request} if request else {})
    return agent.post(f"/v2/models/{model}/infer", body)


def _states(world) -> set[str]:
    report = world.manager.reported.get("dev-1")
    models = report.models if report else {}
    return {models[name].state.value if name in models else "" for name in NAMES}


def test_a_model_that_hangs_delays_no_answer_of_another(world, writer):
    hanging = writer.add(model="door", version="1", seed=2, files={"model": bad_models.hangs()})
    good = writer.add(model="meter", version="1")
    agent = world.agent()
    patient = msgspec.structs.replace(QUICK, stuck_s_min=600.0)
    world.manager.deploy_all("dev-1", {"door": hanging, "meter": good}, "v1", policy=patient)
    wait_for(lambda: _states(world) == {"TRIAL"}, what="both serve")
    for name in NAMES:
        wait_for(lambda name=name: _ask(agent, name)[0] == 200, what=name)
    stuck = threading.Thread(
        target=_ask, args=(agent, "door", None, bad_models.TRIGGER + 1), daemon=True
    )
    stuck.start()
    time.sleep(0.3)  # it is in the model by now; if not, the test is only weaker
    for number in range(50):
        status, body = _ask(agent, "meter", f"m-{number}")
        assert (status, body["model_name"]) == (200, "meter")
    assert stuck.is_alive()


def test_a_group_flips_under_load_and_goes_back_as_one(world, writer):
    pairs = [
        {name: writer.add(model=name, seed=seed, version=str(seed)) for name in NAMES}
        for seed in (1, 2)
    ]
    agent = world.agent()
    world.manager.deploy_all("dev-1", pairs[0], "v1", group=NAMES)
    wait_for(lambda: _states(world) == {"TRIAL"}, what="both serve")
    failed, seen, stop = [], {name: set() for name in NAMES}, threading.Event()

    def client(name: str) -> None:
        number = 0
        while not stop.is_set():
            status, body = _ask(agent, name, f"{name}-{number}")
            number += 1
            if status == 200:
                seen[name].add(body["model_version"])
            else:
                failed.append((name, status, body))
            time.sleep(0.005)

    for name in NAMES:
        wait_for(lambda name=name: _ask(agent, name)[0] == 200, what=name)
    threads = [threading.Thread(target=client, args=(name,), daemon=True) for name in NAMES]
    for thread in threads:
        thread.start()
    wait_for(lambda: _states(world) == {"CONFIRMED"}, what="v1 confirmed")
    patient = msgspec.structs.replace(QUICK, confirm_s_min=3600.0)
    world.manager.deploy_all("dev-1", pairs[1], "v2", group=NAMES, policy=patient)
    wait_for(lambda: all("2" in versions for versions in seen.values()), what="both flipped")

    def spoil() -> bool:
        _ask(agent, "meter", None, 3e38)
        return _states(world) == {"ROLLED_BACK"}

    wait_for(spoil, what="both went back")
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    models = world.manager.reported["dev-1"].models
    assert {name: models[name].active.digest for name in NAMES} == pairs[0]
    assert "with meter of its group" in models["door"].failed[pairs[1]["door"]].reason
