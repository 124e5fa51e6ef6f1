"""HTTP and command line of a real agent: standard answers, bad input, one agent per folder."""

from __future__ import annotations

import json
import socket

import pytest
from agentkit import layouts
from agentkit.ports import free_port
from agentkit.world import AgentProcess, World

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    writer = layouts.LayoutWriter(folder / "layout")
    world = World(folder, writer.root)
    port = free_port()
    agent = world.agent("dev-1", extra=f"port = {port}\nbody_bytes_max = 4096\n")
    world.manager.deploy("dev-1", writer.add(), release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    agent.port = port
    yield world, agent
    world.close()


def _tensor(**changes):
    return {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}


def test_protocol_metadata_and_health(served):
    _, agent = served
    assert agent.get("/v2/health/live") == (200, {"live": True})
    assert agent.get("/v2/health/ready") == (200, {"ready": True})
    assert agent.get("/v2")[1]["name"] == "edgekit-agent"
    assert agent.get("/v2/models/meter/ready")[0] == 200
    status, body = agent.get("/v2/models/meter")
    assert status == 200
    assert body["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


def test_inference_answers_like_the_reference(served):
    _, agent = served
    status, body = agent.infer("ref-1", (1.0, 2.0, 3.0, 4.0))
    assert status == 200
    assert (body["id"], body["model_name"], body["model_version"]) == ("ref-1", "meter", "1")
    expected = layouts.reference(1, __import__("numpy").array([[1.0, 2.0, 3.0, 4.0]]))
    assert body["outputs"][0]["data"] == pytest.approx(expected.ravel().tolist(), abs=1e-5)
    assert body["parameters"] == {"slot": "a", "flags": [], "counted": True}
    assert agent.infer("ref-1")[1]["parameters"]["counted"] is False


def test_out_of_range_is_flagged_and_answered(served):
    _, agent = served
    status, body = agent.infer(None, (1e6, 0, 0, 0))
    assert status == 200
    assert body["parameters"]["flags"] == ["input_range"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v2/nothing", None, 404),
        ("GET", "/v2/models/other", None, 404),
        ("GET", "/v2/models/meter/nothing", None, 404),
        ("POST", "/v2/models/other/infer", b"{}", 404),
        ("GET", "/v2/models/meter/infer", None, 405),
        ("POST", "/v2", b"", 405),
        ("POST", "/v2/models/meter/infer", b"", 400),
        ("POST", "/v2/models/meter/infer", b"not json", 400),
        ("POST", "/v2/models/meter/infer", b"\xff\xfe", 400),
        ("POST", "/v2/models/meter/infer", {"inputs": []}, 400),
        ("POST", "/v2/models/meter/infer", {"inputs": [_tensor(name="y")]}, 400),
        ("POST", "/v2/models/meter/infer", {"inputs": [_tensor(shape=[4])]}, 400),
        ("POST", "/v2/models/meter/infer", {"inputs": [_tensor(), _tensor()]}, 400),
        (
            "POST",
            "/v2/models/meter/infer",
            {"inputs": [_tensor()], "outputs": [{"name": "z"}]},
            400,
        ),
        ("POST", "/v2/models/meter/infer", b"x" * 5000, 413),
        ("POST", "/v2/models/meter/feedback", {"id": "never", "label": 1}, 404),
        ("POST", "/v2/models/meter/feedback", {"id": "never", "label": "purple"}, 400),
        ("POST", "/v2/models/meter/feedback", {"id": "never", "label": -1}, 400),
        ("POST", "/v2/models/meter/feedback", {"label": 1}, 400),
    ],
)
def test_bad_requests_get_their_status_and_a_reason(served, method, path, body, status):
    _, agent = served
    found, answer = agent.get(path) if method == "GET" else agent.post(path, body)
    assert found == status
    assert answer["error"]


def test_feedback_by_name_and_number_is_counted_once(served):
    world, agent = served
    _, body = agent.infer("fb-1")
    best = max(range(3), key=body["outputs"][0]["data"].__getitem__)
    name = ("low", "mid", "high")[best]
    for _ in range(2):
        answer = agent.post("/v2/models/meter/feedback", {"id": "fb-1", "label": name})
        assert answer == (200, {"id": "fb-1", "correct": True})
    agent.infer("fb-2")
    answer = agent.post("/v2/models/meter/feedback", {"id": "fb-2", "label": (best + 1) % 3})
    assert answer[1]["correct"] is False
    from agentkit.world import wait_for

    wait_for(lambda: sum(w.labelled for w in world.manager.windows) == 2, what="labels")
    assert sum(w.correct for w in world.manager.windows) == 1


def test_loopback_port_serves_too(served):
    _, agent = served
    with socket.create_connection(("127.0.0.1", agent.port), timeout=5) as plain:
        plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert plain.recv(100).startswith(b"HTTP/1.1 200")


def test_status_and_selftest_read_beside_a_running_agent(served):
    _, agent = served
    status = agent.status()
    assert status["alive"]
    assert status["pid"] == agent.process.pid
    assert status["models"]["meter"]["active"]["release"] == "v1"
    assert status["start_to_first_inference_s"] > 0
    assert status["rss_bytes"] > 1e6
    assert "counted" in agent.cli("status").stdout
    done = agent.cli("selftest", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "pass"


def test_second_agent_on_one_folder_is_refused_and_the_first_lives(served):
    _, agent = served
    done = agent.cli("run")
    assert done.returncode == 5
    assert str(agent.process.pid) in done.stderr
    assert agent.infer(None)[0] == 200


@pytest.mark.parametrize(
    ("extra", "code"),
    [("unknown = 1\n", 2), ("[broker2]\n", 2), ("threads = 0\n", 2)],
)
def test_wrong_configuration_ends_in_one_line_and_a_hint(tmp_path, extra, code):
    agent = AgentProcess(tmp_path, "dev-9", 1, extra)
    done = agent.cli("run")
    assert done.returncode == code
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert not agent.state.exists()


def test_port_in_use_is_said_and_nothing_is_left(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        agent = AgentProcess(tmp_path, "dev-9", 1, f"port = {taken.getsockname()[1]}\n")
        done = agent.cli("run")
    assert done.returncode == 5
    assert done.stderr.startswith("error: port")
    assert not agent.socket.exists()


def test_impossible_target_is_refused_before_anything_is_written(tmp_path):
    agent = AgentProcess(tmp_path, "dev-9", 1)
    agent.config.write_text(agent.config.read_text().replace("x86-64-v3", "rpi5"))
    done = agent.cli("run")
    assert done.returncode == 2
    assert "rpi5" in done.stderr
    assert not agent.state.exists()


def test_status_before_the_first_start(tmp_path):
    agent = AgentProcess(tmp_path, "dev-9", 1)
    status = agent.status()
    assert not status["alive"]
    assert status["totals"]["produced"] == 0
    assert not agent.state.exists()
