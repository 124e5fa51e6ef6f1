"""A stock client, hostile ones and slow ones against a real agent."""

from __future__ import annotations

import importlib
import os
import random
import socket
import struct
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from agentkit import layouts
from agentkit.ports import free_port
from agentkit.world import World, wait_for

from edgekit_runtime import process_facts

pytestmark = pytest.mark.integration
SCALE = float(os.environ.get("EDGEKIT_TEST_SCALE", "1"))
FUZZED = int(20000 * SCALE)
BODY_MAX = 65536


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    writer = layouts.LayoutWriter(folder / "layout")
    world = World(folder, writer.root)
    port = free_port()
    extra = (
        f"port = {port}\nbody_bytes_max = {BODY_MAX}\nclient_s_max = 1.0\nconnections_max = 16\n"
    )
    agent = world.agent("dev-1", extra=extra)
    world.manager.deploy("dev-1", writer.add(), release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    agent.port = port
    yield agent
    world.close()


@pytest.fixture(scope="module")
def triton(served):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = importlib.import_module("tritonclient.http")  # a dev dependency: absence fails
        yield client, client.InferenceServerClient(f"127.0.0.1:{served.port}")


def _input(client, rows, *, binary):
    tensor = client.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return tensor


def test_tritonclient_reads_health_and_metadata(triton):
    _, server = triton
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("meter")
    assert server.is_model_ready("meter", "1")
    assert not server.is_model_ready("meter", "2")
    assert "binary_tensor_data" in server.get_server_metadata()["extensions"]
    found = server.get_model_metadata("meter")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert found["edgekit_contract"]["inputs"][0]["range"] == [-100.0, 100.0]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_tritonclient_infers_in_json_and_binary(triton, binary_in, binary_out, named):
    client, server = triton
    rows = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    wanted = [client.InferRequestedOutput("scores", binary_data=binary_out)] if named else None
    if not named and not binary_out:
        return  # this client always asks for binary when it names no outputs
    result = server.infer("meter", [_input(client, rows, binary=binary_in)], outputs=wanted)
    np.testing.assert_allclose(result.as_numpy("scores"), layouts.reference(1, rows), atol=1e-5)
    assert result.get_response()["model_name"] == "meter"


def test_tritonclient_is_told_what_is_wrong(triton):
    client, server = triton
    with pytest.raises(client.InferenceServerException, match="shape"):
        server.infer("meter", [_input(client, np.zeros((1, 5), np.float32), binary=True)])


def test_metrics_are_prometheus_text(served):
    served.infer(None)
    raw = _exchange(served, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"text/plain; version=0.0.4" in head
    lines = body.decode().splitlines()
    labels = 'model="meter",version="1",slot="a"'
    count = next(line for line in lines if f"duration_seconds_count{{{labels}}}" in line)
    assert int(count.split()[-1]) >= 1
    assert f"edgekit_model_ready{{{labels}}} 1" in lines
    names = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    suffixes = ("_bucket", "_sum", "_count")
    for name in names:
        assert name in typed or any(name.removesuffix(s) in typed for s in suffixes)


# --- clients that misbehave ----------------------------------------------------------------------


def _connect(agent, timeout_s=10.0):
    return socket.create_connection(("127.0.0.1", agent.port), timeout=timeout_s)


def _read(connection) -> bytes:
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def _exchange(agent, request: bytes) -> bytes:
    with _connect(agent) as connection:
        connection.sendall(request)
        return _read(connection)


def _infer_request(body: bytes, *headers: str, close: bool = True) -> bytes:
    lines = ["POST /v2/models/meter/infer HTTP/1.1", "Host: x", *headers]
    if close:
        lines.append("Connection: close")
    if not any(line.lower().startswith(("content-length", "transfer")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


GOOD = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'


def test_a_client_that_stops_sending_half_way_is_told_and_hung_up_on(served):
    for partial in (
        b"",
        b"POST /v2/models/me",
        _infer_request(GOOD, "Content-Length: 5000"),  # announces more than it sends
    ):
        with _connect(served) as connection:
            connection.sendall(partial)
            assert b"408" in _read(connection).partition(b"\r\n")[0]
    assert served.infer(None)[0] == 200


def test_a_client_that_sends_more_than_it_announced_gets_one_answer_and_a_refusal(served):
    answer = _exchange(
        served, _infer_request(GOOD + b"GARBAGE\r\n\r\n", f"Content-Length: {len(GOOD)}")
    )
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_half_closed_client_still_gets_its_answer(served):
    with _connect(served) as connection:
        connection.sendall(_infer_request(GOOD, close=False))
        connection.shutdown(socket.SHUT_WR)
        answer = _read(connection)
    assert answer.startswith(b"HTTP/1.1 200")


def test_one_connection_is_answered_by_agent_and_worker_in_turn(served):
    """Metadata is the agent's, inference the worker's: the connection moves, in order."""
    ready = b"GET /v2/models/meter/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    infer = _infer_request(GOOD, close=False)
    chunked = _infer_request(
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD), "Transfer-Encoding: chunked", close=False
    )
    unknown = infer.replace(b"meter/infer", b"other/infer")
    sent = [ready, infer, infer, unknown, chunked, ready, ready, infer] * 20
    last = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    wanted = {ready: b"200", infer: b"200", unknown: b"404", chunked: b"200"}
    together = _exchange(served, b"".join(sent) + last)
    assert _statuses(together) == [wanted[each] for each in sent] + [b"200"]
    with _connect(served) as connection:
        for each in sent:
            connection.sendall(each[:20])
            time.sleep(0.001)
            connection.sendall(each[20:])
            assert connection.recv(65536)[9:12] == wanted[each]


def test_thousands_of_requests_sent_ahead_are_all_answered(served):
    ready = b"GET /v2/health/live HTTP/1.1\r\n\r\n"
    for each in (ready, _infer_request(GOOD, close=False)):
        with _connect(served) as connection:
            sender = threading.Thread(target=connection.sendall, args=(each * 3000,))
            sender.start()
            data = b""
            while data.count(b"HTTP/1.1 200") < 3000:
                part = connection.recv(1 << 16)
                assert part
                data += part
            sender.join()
    assert served.process.poll() is None


def _statuses(data: bytes) -> list[bytes]:
    return [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]]


def test_a_head_without_end_is_refused(served):
    with _connect(served) as connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            for number in range(3000):
                connection.sendall(f"x-{number}: {'y' * 60}\r\n".encode())
        except OSError:
            pass  # hung up on in the middle of it
    assert served.get("/v2/health/live")[0] == 200


def test_connections_are_bounded_and_given_back(served):
    held = [_connect(served) for _ in range(40)]
    time.sleep(0.2)
    refused = 0
    for connection in held[20:]:
        connection.settimeout(0.5)
        try:
            refused += b"503" in connection.recv(64)
        except OSError:
            continue
    for connection in held:
        connection.close()
    assert refused > 0
    wait_for(lambda: served.get("/v2/health/live")[0] == 200, what="serves again")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (GOOD.replace(b"4]}", b"NaN]}"), (), b"400"),
        (GOOD.replace(b"[1,2,3,4]", b"[1e999,0,0,0]"), (), b"400"),
        (GOOD.replace(b"[1,4]", b"[1,-4]"), (), b"400"),
        (GOOD.replace(b"[1,4]", b"[99999999999,4]"), (), b"400"),
        (GOOD.replace(b"[1,4],", b"[0,4],").replace(b"[1,2,3,4]", b"[]"), (), b"400"),
        (GOOD.replace(b"FP32", b"BYTES"), (), b"400"),
        (GOOD.replace(b"[1,2,3,4]", b"null"), (), b"400"),
        (b"[" * 20000, (), b"400"),
        (GOOD.replace(b"[1,2,3,4]", b"[" * 20000 + b"]" * 20000), (), b"400"),
        (GOOD.replace(b'"x"', b'"\x80"'), (), b"400"),
        (GOOD, ("Inference-Header-Content-Length: 99999",), b"400"),
        (GOOD, ("Inference-Header-Content-Length: x",), b"400"),
        (GOOD + b"1234", (f"Inference-Header-Content-Length: {len(GOOD)}",), b"400"),
        (b"x" * (BODY_MAX + 1), (), b"413"),
        (b"", ("Content-Length: 99999999999",), b"413"),
        (b"zz\r\n", ("Transfer-Encoding: chunked",), b"400"),
    ],
)
def test_bad_bodies_get_a_status_and_a_reason(served, body, headers, status):
    answer = _exchange(served, _infer_request(body, *headers))
    assert status in answer.partition(b"\r\n")[0], answer[:200]
    assert served.infer(None)[0] == 200


def _binary(rows: np.ndarray, size: int | None = None) -> tuple[bytes, int]:
    data = rows.tobytes()
    stated = len(data) if size is None else size
    head = (
        f'{{"inputs":[{{"name":"x","shape":{list(rows.shape)},"datatype":"FP32",'
        f'"parameters":{{"binary_data_size":{stated}}}}}]}}'
    ).encode()
    return head + data, len(head)


@pytest.mark.parametrize("size", [0, 15, 17, -1, 10**9])
def test_a_lying_binary_size_is_refused(served, size):
    body, length = _binary(np.ones((1, 4), np.float32), size)
    header = f"Inference-Header-Content-Length: {length}"
    assert b"400" in _exchange(served, _infer_request(body, header)).partition(b"\r\n")[0]


def _mutate(generator: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.randint(1, 6)):
        where = generator.randrange(len(data) + 1)
        action = generator.randrange(4)
        if action == 0:
            data[where:where] = generator.choice(_TOKENS)
        elif action == 1:
            del data[where : where + generator.randint(1, 8)]
        elif data and action == 2:
            data[where % len(data)] = generator.randrange(256)
        else:
            data = data[:where]
    return bytes(data)


def _sizes(served) -> list[int]:
    """Of the agent and its worker."""
    pid = served.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = Path(f"/proc/{pid}/task").iterdir()
    children += [child for task in threads for child in (task / "children").read_text().split()]
    return [process_facts.rss_bytes(each) or 0 for each in {pid, *map(int, children)}]


_TOKENS = [
    b"NaN", b"-1", b"1e400", b"null", b"[", b"]", b"{", b'"', b"\\u0000", b"\xff", b"9" * 30,
    b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"\x00",
    b"Inference-Header-Content-Length: 3\r\n", b"Expect: 100-continue\r\n",
    struct.pack("<f", float("nan")),
]  # fmt: skip


def test_fuzzed_requests_never_crash_it_never_500_and_memory_stays(served):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = random.Random(seed)
    body, length = _binary(np.ones((2, 4), np.float32))
    seeds = [
        _infer_request(GOOD),
        _infer_request(body, f"Inference-Header-Content-Length: {length}"),
        _infer_request(b'{"id":"x","label":1}').replace(b"/infer", b"/feedback"),
        b"GET /v2/models/meter HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
    codes: dict[bytes, int] = {}
    size = None
    for number in range(FUZZED):
        if number == FUZZED // 3:
            size = sum(_sizes(served))
        with _connect(served) as connection:
            try:
                connection.sendall(_mutate(generator, seeds))
                connection.shutdown(socket.SHUT_WR)
                code = connection.recv(65536)[9:12]
            except OSError:
                code = b""
        codes[code] = codes.get(code, 0) + 1
    after = sum(_sizes(served))
    print(f"{FUZZED} hostile requests: {dict(sorted(codes.items()))}; {size} bytes, then {after}")
    assert served.process.poll() is None
    assert b"500" not in codes, (seed, codes)
    assert codes.get(b"400", 0) > 0
    wait_for(lambda: served.infer(None)[0] == 200, what="serves on")
    assert after < size + 16e6
