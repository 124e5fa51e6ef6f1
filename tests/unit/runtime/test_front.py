"""The front sends a request to what serves from the moment on that the agent calls it ready."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest
from agentkit.layouts import LayoutWriter

from edgekit.contracts.messages import Policy, SlotRef
from edgekit_runtime.control import Control
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.front import Front, Limits
from edgekit_runtime.loop import Loop
from edgekit_runtime.monitors.windows import labels_for
from edgekit_runtime.region import Region
from edgekit_runtime.serving import Live, Serving
from edgekit_runtime.shelf import Shelf
from edgekit_runtime.workers import WorkerHost, WorkerLimits

BODY = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'


@pytest.fixture
def host(tmp_path):
    limits = WorkerLimits(
        threads=1, cores=(), body_bytes_max=1 << 16, bodies_bytes_max=1 << 20,
        requests_max=8, connections_max=8, client_s_max=5.0,
    )  # fmt: skip
    found = WorkerHost(tmp_path, limits)
    yield found
    found.close()


def _asked(port: int, path: str, answers: list[bytes], body: bytes = b"") -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        answers.append(client.recv(65536))


def test_a_request_behind_ready_waits_for_its_worker_even_when_the_front_has_not_been_told(
    tmp_path, host
):
    digest = LayoutWriter(tmp_path).add()
    ref = SlotRef(digest=digest, version="1", target="x86-64-v3", release="r", rollout="o", wave=0)
    loaded = host.load("meter", ref, Policy(), tested=False)
    region = Region.create(PosixDisk(), tmp_path / "r", labels_for("meter", ref, "a", loaded))
    loop = Loop()
    front = Front(loop, Limits(1 << 16, 1 << 20, 8, 5.0), Control(), woken=lambda: None)
    told: list[Serving] = []  # the control thread's calls, which the front has not handled yet
    serving = Serving("meter", Shelf(), told.append)
    front.changed(serving)  # as when the model became known
    listener = socket.create_server(("127.0.0.1", 0))
    front.listen(listener)
    port = listener.getsockname()[1]
    answers: list[bytes] = []

    def ask() -> None:
        _asked(port, "/v2/models/meter/ready", answers)
        serving.switch(Live(loaded, region, ref, "a"))
        _asked(port, "/v2/models/meter/ready", answers)
        _asked(port, "/v2/models/meter/infer", answers, BODY)

    client = threading.Thread(target=ask)
    client.start()
    while client.is_alive():
        loop.turn(0.05)
    client.join()
    before, ready, answer = answers
    assert before.startswith(b"HTTP/1.1 503")
    assert ready.startswith(b"HTTP/1.1 200")
    assert told == [serving]
    assert answer.startswith(b"HTTP/1.1 200")
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["model_version"] == "1"
    front.drain()
    while not front.idle:
        loop.turn(0.05)
    front.close()
