"""Pipelines of a real agent: MQTT, folder and HTTP push, through a model, into every sink."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
from agentkit import layouts
from agentkit.pipelines import Bus, Webhook, balanced, lines
from agentkit.ports import free_port
from agentkit.world import wait_for
from fleetkit.processes import Broker, running

from edgekit_runtime import config as configuration
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import counts

pytestmark = pytest.mark.integration


def _serve(world, writer, extra):
    agent = world.agent(extra=extra)
    world.manager.deploy("dev-1", writer.add(), release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    return agent


def _figures(agent, name):
    """What ``status`` reads, without starting a process for it each time."""
    for spec in configuration.load(agent.config, {}).pipeline:
        if spec.name == name:
            return msgspec.to_builtins(counts.read(PosixDisk(), agent.state, spec))
    return None


def _settled(agent, name, received):
    """The figures, once so many items have arrived and all have ended."""

    def look():
        found = _figures(agent, name)
        done = found and found["received"] >= received and balanced(found)
        return found if done else None

    try:
        return wait_for(look, what=f"{name}: {received} items ended")
    except AssertionError as exc:
        raise AssertionError(f"{_figures(agent, name)}\n{agent.log.read_text()[-3000:]}") from exc


def _push(port, path, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.getheader("retry-after")
    finally:
        connection.close()


def test_messages_become_answers_in_a_file_and_on_a_topic(world, writer, tmp_path):
    out = tmp_path / "out" / "door.jsonl"
    agent = _serve(
        world,
        writer,
        f"""
[[pipeline]]
name = "door"
model = "meter"
source = {{kind = "mqtt", topic = "sensors/+", port = {world.broker.port},
  fields = ["a", "b", "c", "d"], id_key = "n"}}
sinks = [{{kind = "file", path = "{out}", fsync = "always"}},
  {{kind = "mqtt", topic = "answers/door", port = {world.broker.port}}}]
""".replace(",\n", ", "),
    )
    bus = Bus(world.broker.port, "answers/#")
    try:
        wait_for(lambda: (_figures(agent, "door") or {}).get("state") == "running", what="runs")
        for number in range(20):
            row = {"a": number, "b": 2, "c": 3, "d": 4, "n": number}
            bus.publish("sensors/x", json.dumps(row).encode())
        bus.publish("sensors/y", b"{broken")
        bus.publish("sensors/y", b'{"a": 1}')
        bus.publish("sensors/y", json.dumps({"a": "x", "b": 2, "c": 3, "d": 4}).encode())
        found = _settled(agent, "door", 23)
        assert (found["inferred"], found["refused"]["decode"]) == (20, 3)
        assert [sink["delivered"] for sink in found["sinks"]] == [20, 20]
        wait_for(lambda: len(bus.heard) == 20, what="answers on the topic")
    finally:
        bus.close()
    written = lines(out)
    assert [each["id"] for each in written] == [f"door-{n}" for n in range(20)]
    assert {each["source"]["topic"] for each in written} == {"sensors/x"}
    assert {each["label"] for each in written} <= {"low", "mid", "high"}
    expected = layouts.reference(1, __import__("numpy").array([[5.0, 2.0, 3.0, 4.0]]))
    assert written[5]["outputs"]["scores"]["data"] == pytest.approx(expected.ravel(), abs=1e-5)
    # The manager hears of it, and Prometheus.
    wait_for(
        lambda: world.manager.reported["dev-1"].health.pipelines["door"].inferred == 20,
        what="reported",
    )
    wait_for(lambda: world.manager.counted == 20, what="counted")
    text = _metrics(agent)
    assert 'edgekit_pipeline_inferred_total{pipeline="door"} 20' in text
    assert 'edgekit_pipeline_sink_delivered_total{pipeline="door",sink="1:mqtt"} 20' in text
    assert agent.status()["pipelines"]["door"]["inferred"] == 20
    assert "pipeline door: running" in agent.cli("status").stdout
    assert agent.stop() == 0
    assert _figures(agent, "door")["state"] == "stopped"


def _metrics(agent) -> str:
    from agentkit.world import UnixConnection

    connection = UnixConnection(agent.socket)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_pushed_items_wait_for_their_model_and_a_stubborn_webhook(world, writer, tmp_path):
    hook, port = Webhook(), free_port()
    hook.answers += [503, 500, 503]
    agent = world.agent(
        extra=f"""
[[pipeline]]
name = "yard"
model = "meter"
queue_max = 4
source = {{kind = "http", port = {port}, bytes_max = 2000}}
sinks = [{{kind = "webhook", url = "{hook.url}", headers = {{X-Site = "north"}}}}]
"""
    )
    try:
        wait_for(lambda: (_figures(agent, "yard") or {}).get("state") == "waiting", what="waits")
        row = b"[1, 2, 3, 4]"
        statuses = [_push(port, "/push/yard", row, **{"X-Request-Id": "r0"})]
        wait_for(lambda: _figures(agent, "yard")["waits"] > 0, what="in hand")
        statuses += [
            _push(port, "/push/yard", row, **{"X-Request-Id": f"r{n}"}) for n in range(1, 9)
        ]
        # One is in hand, four wait; the others are told to come again.
        assert [status for status, _, _ in statuses] == [202] * 5 + [429] * 4
        assert [after for status, _, after in statuses if status == 429] == ["1"] * 4
        assert _push(port, "/push/yard", b"x" * 3000)[0] == 413
        assert _push(port, "/push/other", row)[0] == 404
        world.manager.deploy("dev-1", writer.add(), release="v1")
        found = _settled(agent, "yard", 10)
        assert found["inferred"] == 5
        assert found["dropped"]["queue_full"] == 4
        assert found["refused"]["too_large"] == 1
        assert found["waits"] > 0
        assert found["sinks"][0]["retries"] == 3
        assert [each["id"] for each in hook.received] == [f"r{n}" for n in range(5)]
        assert hook.headers[0]["X-Site"] == "north"
        assert hook.headers[0]["X-Request-Id"] == "r0"
        hook.answers += [400]
        assert _push(port, "/push/yard", row)[0] == 202
        found = _settled(agent, "yard", 11)
        assert found["sinks"][0]["failed"] == 1
    finally:
        hook.close()


def test_a_killed_process_reads_its_folder_again_and_counts_once(world, writer, tmp_path):
    inbox, out = tmp_path / "inbox", tmp_path / "out.jsonl"
    inbox.mkdir()
    hook = Webhook()
    hook.answers += [503] * 100_000  # nothing is delivered: nothing may be put away
    agent = _serve(
        world,
        writer,
        f"""
[[pipeline]]
name = "inbox"
model = "meter"
source = {{kind = "folder", path = "{inbox}", payload = "raw", settle_s = 0, poll_s = 0.1}}
sinks = [{{kind = "file", path = "{out}", fsync = "always"}}, {{kind = "webhook",
  url = "{hook.url}", attempts_max = 1000, queue_max = 3}}]
""".replace(",\n", ", "),
    )
    try:
        for number in range(10):
            _drop(inbox, f"m{number}.raw", number)
        wait_for(lambda: (_figures(agent, "inbox") or {}).get("inferred", 0) >= 4, what="inferred")
        assert len(list(inbox.glob("*.raw"))) == 10
        for number in (signal.SIGKILL, signal.SIGSEGV):
            starts = _figures(agent, "inbox")["starts"]
            os.kill(_child(agent), number)
            _started(agent, "inbox", starts + 1)
        hook.answers.clear()
        wait_for(lambda: len(list((inbox / "done").glob("*.raw"))) == 10, what="put away")
        found = _settled(agent, "inbox", 10)
        assert found["dropped"]["ended"] > 0
        assert found["inferred"] >= 10
        ids = {each["id"] for each in hook.received}
        assert len(ids) == 10
        assert ids <= {each["id"] for each in lines(out)}
        # However often it was answered, each file was counted once.
        wait_for(lambda: world.manager.counted >= 10, what="counted")
        time.sleep(0.5)
        assert world.manager.counted == 10
        for words in ("ended by SIGKILL", "Fatal Python error: Segmentation fault"):
            wait_for(lambda words=words: _told(world, "pipeline inbox", words), what=words)
        child = _child(agent)
        agent.kill()
        wait_for(lambda: not Path(f"/proc/{child}").exists(), what="ends with its agent")
    finally:
        hook.close()


def _told(world, *words):
    details = [getattr(record, "detail", "") for record in world.manager.records]
    return any(all(word in detail for word in words) for detail in details)


def _started(agent, name, starts):
    wait_for(lambda: _figures(agent, name)["starts"] >= starts, what=f"start {starts}")


def _drop(folder, name, number):
    import numpy as np

    partial = folder / f".{name}"
    partial.write_bytes(np.array([number, 2, 3, 4], "<f4").tobytes())
    partial.rename(folder / name)


def _child(agent) -> int:
    """The pid of the pipeline's process."""

    def look():
        for task in Path(f"/proc/{agent.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if b"edgekit_runtime.sources" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return None

    return wait_for(look, what="a pipeline's process")


def test_messages_come_again_after_a_kill_and_a_broker_that_was_away(world, writer, tmp_path):
    """On a broker that keeps sessions: what was not acknowledged is not lost."""
    out = tmp_path / "out.jsonl"
    broker = Broker("mosquitto", tmp_path)
    hook = Webhook()
    hook.answers += [503] * 100_000
    with running(broker):
        agent = _serve(
            world,
            writer,
            f"""
[[pipeline]]
name = "door"
model = "meter"
drop = "block"
source = {{kind = "mqtt", topic = "door", port = {broker.port}, id_key = "n",
  fields = ["a", "b", "c", "d"]}}
sinks = [{{kind = "webhook", url = "{hook.url}", attempts_max = 1000}},
  {{kind = "file", path = "{out}"}}]
""".replace(",\n", ", "),
        )
        bus = Bus(broker.port)
        try:
            wait_for(lambda: (_figures(agent, "door") or {}).get("state") == "running", what="runs")
            for number in range(6):
                bus.publish("door", _message(number))
            wait_for(lambda: _figures(agent, "door")["inferred"] >= 6, what="inferred")
            os.kill(_child(agent), signal.SIGKILL)
            _started(agent, "door", 2)
            wait_for(lambda: _figures(agent, "door")["inferred"] >= 12, what="again")
            hook.answers.clear()
            wait_for(lambda: len({each["id"] for each in hook.received}) == 6, what="delivered")
            bus.close()
            broker.kill()
            wait_for(lambda: _figures(agent, "door")["state"] == "away", what="away")
            broker.start()
            wait_for(lambda: _figures(agent, "door")["state"] == "running", what="back")
            bus = Bus(broker.port)
            bus.publish("door", _message(6))
            wait_for(lambda: "door-6" in {each["id"] for each in hook.received}, what="goes on")
            _settled(agent, "door", 13)
            wait_for(lambda: world.manager.counted >= 7, what="counted")
            assert world.manager.counted == 7
        finally:
            bus.close()
            hook.close()


def _message(number: int) -> bytes:
    return json.dumps({"a": number, "b": 2, "c": 3, "d": 4, "n": number}).encode()
