"""A candidate loads when the cores are idle, and serves like everything else."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest
from agentkit import layouts
from agentkit.processes import workers
from agentkit.world import World

pytestmark = pytest.mark.integration


@pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"),
    reason="root may leave the policy, others by their limit",
)
def test_a_candidate_gives_way_while_it_loads_and_not_when_it_serves(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    world = World(tmp_path, writer.root)
    seen: dict[int, set[int]] = {}
    stop = threading.Event()

    def watch(agent) -> None:
        while not stop.is_set():
            for pid in workers(agent):
                with contextlib.suppress(ProcessLookupError):
                    seen.setdefault(pid, set()).add(os.sched_getscheduler(pid))
            time.sleep(0.001)

    try:
        agent = world.agent()
        world.manager.deploy("dev-1", writer.add(seed=1, version="1"), release="v1")
        world.manager.wait_state("dev-1", "TRIAL")
        for number in range(40):
            agent.infer(f"a{number}")
        world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
        (first,) = workers(agent)
        watching = threading.Thread(target=watch, args=(agent,))
        watching.start()
        world.manager.deploy("dev-1", writer.add(seed=2, version="2"), release="v2")
        world.manager.wait_state("dev-1", "TRIAL", release="v2")
        assert agent.infer("b")[1]["model_version"] == "2"
        stop.set()
        watching.join()
        (second,) = set(workers(agent)) - {first}
        assert os.SCHED_IDLE in seen[second]
        assert os.sched_getscheduler(second) == os.SCHED_OTHER
    finally:
        stop.set()
        world.close()
