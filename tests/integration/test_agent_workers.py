"""Models that crash, hang and grow: only their worker ends, and they are rolled back."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest
from agentkit import bad_models
from agentkit.processes import is_worker, workers
from agentkit.world import QUICK, UnixConnection, wait_for

from edgekit.contracts.messages import DeviceEvent, SlotEvent

pytestmark = pytest.mark.integration
LONG_TRIAL = msgspec.structs.replace(QUICK, confirm_s_min=3600.0)


def _confirm_first(world, writer):
    digest = writer.add(seed=1, version="1")
    agent = world.agent()
    world.manager.deploy("dev-1", digest, release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    answered = {f"a-{n}" for n in range(10) if agent.infer(f"a-{n}")[0] == 200}
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    return agent, answered


def _try_second(world, agent, digest, **policy):
    world.manager.deploy(
        "dev-1", digest, release="v2", policy=msgspec.structs.replace(LONG_TRIAL, **policy)
    )
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    wait_for(lambda: agent.infer(None)[1]["model_version"] == "2", what="v2 serves")


def _counted_is_answered(world, answered: set[str], extra: int) -> None:
    wait_for(
        lambda: world.manager.counted >= len(answered) + extra,
        what=f"{len(answered)} + {extra} counted, got {world.manager.counted}",
    )
    assert world.manager.counted == len(answered) + extra


def _events(world, kind):
    return [record for record in world.manager.records if isinstance(record, kind)]


def test_the_agent_itself_never_loads_the_engine(world, writer):
    agent, _ = _confirm_first(world, writer)
    pids = workers(agent)
    assert len(pids) == 1
    assert "onnxruntime" not in Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "onnxruntime" in Path(f"/proc/{pids[0]}/maps").read_text()


def test_segfaults_on_trial_roll_back_with_the_signal_named(world, writer):
    agent, answered = _confirm_first(world, writer)
    bad = writer.add(seed=2, version="2")
    _try_second(world, agent, bad)
    assert world.manager.model("dev-1").failed == {}
    shot: set[int] = set()

    def shoot():
        status, body = agent.infer(None)
        pids = set(workers(agent)) - shot
        if status == 200 and body["model_version"] == "2" and len(pids) == 1:
            shot.update(pids)
            os.kill(*pids, signal.SIGSEGV)
        return bad in world.manager.model("dev-1").failed

    wait_for(shoot, what="rolled back")
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "crash loop" in model.failed[bad].reason
    assert "SIGSEGV" in model.failed[bad].reason
    wait_for(lambda: agent.infer("after")[0] == 200, what="v1 serves again")
    assert agent.process.poll() is None
    told = "SIGSEGV"
    wait_for(lambda: sum(told in e.detail for e in _events(world, DeviceEvent)) >= 3, what=told)
    assert world.manager.reported["dev-1"].health.workers_ended == len(shot)
    # What faulthandler wrote: the line that names the crash in the event, all of it in the log.
    ends = [e.detail for e in _events(world, DeviceEvent) if e.kind == "worker_ended"]
    assert all("it said: Fatal Python error: Segmentation fault" in detail for detail in ends)
    tag = f"edgekit_runtime.worker: meter b {bad[7:19]}: "
    wait_for(
        lambda: "most recent call first" in agent.cli("logs").stdout, what="the worker's own lines"
    )
    assert f"{tag}Fatal Python error: Segmentation fault" in agent.cli("logs").stdout
    wait_for(lambda: world.manager.counted > len(answered), what="counted on")


def test_a_model_that_hangs_is_killed_and_rolled_back_at_once(world, writer):
    agent, _ = _confirm_first(world, writer)
    bad = writer.add(seed=2, version="2", files={"model": bad_models.hangs()})
    _try_second(world, agent, bad, stuck_s_min=1.0)
    status, body = agent.infer("hang", (bad_models.TRIGGER + 1, 0, 0, 0))
    assert status == 503
    assert "did not end within 1 s" in body["error"]
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "did not end within" in model.failed[bad].reason
    # What was not answered was not counted: under the same id it is asked again, and counts once.
    wait_for(lambda: agent.infer("hang", (1, 0, 0, 0))[0] == 200, what="v1 serves again")
    assert agent.infer("hang", (1, 0, 0, 0))[1]["parameters"]["counted"] is False
    wait_for(
        lambda: any(e.state.value == "ROLLED_BACK" for e in _events(world, SlotEvent)),
        what="audit of the roll-back",
    )


def test_a_model_that_grows_beyond_its_limit_is_rolled_back_for_memory(world, writer):
    agent, _ = _confirm_first(world, writer)
    bad = writer.add(seed=2, version="2", files={"model": bad_models.grows()})
    _try_second(world, agent, bad, worker_bytes_max=300_000_000)
    for step in range(1, 39):  # each request keeps a little more
        agent.infer(None, (bad_models.TRIGGER + step * 6, 0, 0, 0))
        if bad in world.manager.model("dev-1").failed:
            break
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "memory" in model.failed[bad].reason
    wait_for(lambda: agent.infer("after")[0] == 200, what="v1 serves again")


def test_a_worker_runs_on_the_cores_that_its_policy_names(world, writer):
    agent, _ = _confirm_first(world, writer)
    (first,) = workers(agent)
    here = os.sched_getaffinity(0)
    core = max(here)
    _try_second(world, agent, writer.add(seed=2, version="2"), cores=(core, 900))
    wait_for(lambda: first not in workers(agent), what="the old worker has ended")
    (second,) = workers(agent)
    threads = [int(each.name) for each in Path(f"/proc/{second}/task").iterdir()]
    assert {core} in [os.sched_getaffinity(each) for each in threads]
    assert os.sched_getaffinity(second) == {core}
    assert os.sched_getaffinity(agent.process.pid) == here
    assert agent.stop() == 0
    agent.start()  # its worker has begun before its order came
    wait_for(lambda: agent.infer(None)[0] == 200, what="v2 serves again")
    (third,) = workers(agent)
    assert os.sched_getaffinity(third) == {core}


def test_an_agent_whose_bundle_is_damaged_serves_nothing_but_is_heard_of(world, writer):
    agent, _ = _confirm_first(world, writer)
    agent.kill()
    wait_for(lambda: not world.manager.presence["dev-1"].online, what="offline")
    for blob in (agent.state / "blobs" / "sha256").iterdir():
        blob.chmod(0o600)
        blob.write_bytes(blob.read_bytes()[:-1])
    agent.start()
    wait_for(lambda: world.manager.presence["dev-1"].online, what="online again")
    assert agent.infer(None)[0] == 503


def test_a_bundle_for_cores_that_are_not_here_is_refused(world, writer):
    _confirm_first(world, writer)
    second = writer.add(seed=2, version="2")
    policy = msgspec.structs.replace(LONG_TRIAL, cores=(900, 901))
    world.manager.deploy("dev-1", second, release="v2", policy=policy)
    wait_for(lambda: second in world.manager.model("dev-1").failed, what="refused")
    model = world.manager.model("dev-1")
    assert "cores [900, 901]: none of them is here" in model.failed[second].reason
    assert model.active.version == "1"


def test_a_killed_worker_of_a_proven_model_is_back_and_nothing_is_miscounted(world, writer):
    agent, answered = _confirm_first(world, writer)
    stop, failures = threading.Event(), []

    def client() -> None:
        number = 0
        while not stop.is_set():
            status, body = agent.infer(f"b-{number}")
            if status == 200:
                answered.add(f"b-{number}")
                number += 1
            else:
                failures.append((status, body))
                time.sleep(0.02)

    thread = threading.Thread(target=client)
    thread.start()
    for _ in range(2):
        floor = len(answered) + 30
        wait_for(lambda floor=floor: len(answered) >= floor, what="load")
        os.kill(workers(agent)[0], signal.SIGKILL)
    floor = len(answered) + 30
    wait_for(lambda: len(answered) >= floor, what="load after the kills")
    stop.set()
    thread.join()
    assert failures
    assert {status for status, _ in failures} == {503}  # never a broken connection
    assert world.manager.model("dev-1").state.value == "CONFIRMED"
    _counted_is_answered(world, answered, 0)


def test_a_connection_that_waits_for_nothing_outlives_a_killed_worker(world, writer):
    agent, _ = _confirm_first(world, writer)
    connection = UnixConnection(agent.socket)

    def ask() -> int:
        body = {
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
        }
        connection.request("POST", "/v2/models/meter/infer", json.dumps(body))
        response = connection.getresponse()
        response.read()
        assert not response.will_close or response.status == 503
        return response.status

    assert ask() == 200
    kept = connection.sock
    assert agent.infer(None)[0] == 200  # the worker is done with the first one by now
    os.kill(workers(agent)[0], signal.SIGKILL)
    time.sleep(0.5)  # noticed by now; if not, a 503 would close the connection
    wait_for(lambda: ask() == 200, what="the next worker answers")
    assert connection.sock is kept
    connection.close()


def test_a_proven_model_that_keeps_crashing_gives_way_to_its_fallback(world, writer):
    agent, _ = _confirm_first(world, writer)
    second = writer.add(seed=2, version="2")
    world.manager.deploy("dev-1", second, release="v2")
    world.manager.wait_state("dev-1", "TRIAL", release="v2")
    wait_for(lambda: agent.infer(None)[1].get("model_version") == "2", what="v2 serves")
    for _ in range(10):
        agent.infer(None)
    world.manager.wait_state("dev-1", "CONFIRMED", release="v2")
    seen: set[int] = set()

    def shot():
        for pid in set(workers(agent)) - seen:
            if agent.infer(None)[0] == 200:
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
        return second in world.manager.model("dev-1").failed

    wait_for(shot, what="rolled back")
    model = world.manager.wait_state("dev-1", "ROLLED_BACK", release="v1")
    assert "crash loop: 3 times" in model.failed[second].reason


def test_workers_end_with_an_agent_that_is_killed_even_while_they_hang(world, writer):
    agent, _ = _confirm_first(world, writer)
    bad = writer.add(seed=2, version="2", files={"model": bad_models.hangs()})
    _try_second(world, agent, bad, stuck_s_min=600.0)
    asked = threading.Thread(target=agent.infer, args=(None, (bad_models.TRIGGER + 1, 0, 0, 0)))
    asked.start()
    wait_for(lambda: len(workers(agent)) == 1, what="the old worker has ended")
    (pid,) = workers(agent)
    time.sleep(0.2)  # the request is in the model by now; if not, the test is only weaker
    agent.kill()
    asked.join()
    wait_for(lambda: not is_worker(pid), what="no orphan")


def test_no_request_fails_and_each_counts_once_while_slots_switch_under_load(world, writer):
    versions = [writer.add(seed=1, version="1"), writer.add(seed=2, version="2")]
    agent = world.agent()
    world.manager.deploy("dev-1", versions[0], release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    failed, answered, stop = [], set(), threading.Event()

    def client(name: str) -> None:
        number = 0
        while not stop.is_set():
            request = f"{name}-{number}"
            for turn in range(2):  # the second time it is answered again and not counted
                status, body = agent.infer(request)
                if status != 200 or body["parameters"]["counted"] != (turn == 0):
                    failed.append((turn, status, body))
            answered.add(request)
            number += 1

    threads = [threading.Thread(target=client, args=(f"c{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for number in (1, 0, 1, 0):
        release = f"v{number + 1}"
        world.manager.wait_state("dev-1", "CONFIRMED")
        world.manager.deploy("dev-1", versions[number], release=release)
        world.manager.wait_state("dev-1", "CONFIRMED", release=release)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    _counted_is_answered(world, answered, 0)
    wait_for(lambda: len(workers(agent)) == 1, what="old workers have ended")


def test_a_service_manager_is_told_ready_alive_and_stopping(world, writer, tmp_path, monkeypatch):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    agent = world.agent()
    assert listener.recv(64) == b"READY=1"
    assert listener.recv(64) == b"WATCHDOG=1"
    agent.process.terminate()
    told = set()
    while b"STOPPING=1" not in told:
        told.add(listener.recv(64))
    listener.close()
    assert agent.process.wait(30) == 0
    agent.process = None
