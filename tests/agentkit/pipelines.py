"""What pipelines need around them in a test: a webhook, a publisher, ledgers, an image model."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paho.mqtt.client as mqtt
from onnx import TensorProto, helper
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget, Task

from . import layouts

SIDE = 8


class Webhook:
    """Keeps what it was sent; ``answers`` are the statuses of the next calls, then 200."""

    def __init__(self, port: int = 0) -> None:
        received = self.received = []
        answers = self.answers = []
        headers = self.headers = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = answers.pop(0) if answers else 200
                if status == 200:
                    received.append(json.loads(body))
                    headers.append(dict(self.headers))
                self.send_response(status)
                if status == 503:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Bus:
    """A client of the local broker that publishes, and keeps what it hears."""

    def __init__(self, port: int, *topics: str) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="test-bus")
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = lambda _c, _d, m: self.heard.append((m.topic, m.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        for topic in topics:
            self._client.subscribe(topic, qos=1)
            assert subscribed.wait(10)

    def publish(self, topic: str, payload: bytes) -> None:
        info = self._client.publish(topic, payload, qos=1)
        info.wait_for_publish(20)
        assert info.is_published()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def lines(path: Path) -> list[dict[str, Any]]:
    """What a file sink has written, older files first."""
    files = sorted(path.parent.glob(path.name + "*"), key=lambda p: -int(p.suffix[1:] or 0)
                   if p.suffix[1:].isdigit() else 0)  # fmt: skip
    return [json.loads(line) for each in files for line in each.read_text().splitlines() if line]


def balanced(figures: dict[str, Any]) -> bool:
    """Whether everything that arrived has ended, and was counted as exactly one thing."""
    ended = figures["inferred"] + sum(figures["refused"].values())
    ended += sum(figures["dropped"].values())
    sinks = [
        sink["delivered"] + sink["failed"] + sum(sink["dropped"].values())
        for sink in figures["sinks"]
    ]
    return ended == figures["received"] and set(sinks) == {figures["inferred"]}


def image_bundle(writer: layouts.LayoutWriter, **options: Any) -> str:
    """A model of 8 x 8 RGB images that answers which channel is strongest."""
    x = InputSpec(
        name="x",
        dtype="float32",
        shape=("n", SIDE, SIDE, 3),
        layout="NHWC",
        range=(0.0, 255.0),
        age_s_max=3600.0,
    )
    scores = OutputSpec(
        name="scores",
        dtype="float32",
        shape=("n", 3),
        task=Task.CLASSIFICATION,
        labels=("red", "green", "blue"),
    )
    contract = Contract(
        inputs=(x,), outputs=(scores,), quality=QualityBudget(metric="top1", drop_max=0.02)
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Softmax", ["mean"], ["scores"], axis=-1),
        ],
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    golden = np.random.default_rng(3).uniform(0, 255, (4, SIDE, SIDE, 3)).astype(np.float32)
    mean = golden.astype(np.float64).mean(axis=(1, 2))
    shares = np.exp(mean - mean.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    files = {
        "model": onnx.ModelProto.SerializeToString(model),
        "golden": layouts.npz({"in.x": golden, "out.scores": shares.astype(np.float32)}),
    }
    return writer.add(found=contract, files=files, **options)
