"""How fast is the endpoint? Against a bare loop and, where they install, other servers.

Servers share core 0, the client has core 1. Rounds alternate between the servers; medians.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime as ort
from device import (
    CLASSES,
    FEATURES,
    IMAGE,
    MODEL,
    add_bundle,
    agent,
    contract,
    deploy,
    free_port,
    http,
    image_model,
    load,
    running,
    small_model,
)  # fmt: skip
from harness import Row, write
from peers import available, start_peer

ROUNDS = int(os.environ.get("EDGEKIT_BENCH_ROUNDS", "7"))
SECONDS = float(os.environ.get("EDGEKIT_BENCH_SECONDS", "3"))
CONNECTIONS = 8
PATH = f"/v2/models/{MODEL}/infer"


def _json_request(path: str = PATH) -> bytes:
    values = np.linspace(-1, 1, FEATURES).round(3).tolist()
    body = f'{{"inputs":[{{"name":"x","shape":[1,{FEATURES}],"datatype":"FP32","data":{values}}}]}}'
    return http("POST", path, body.encode(), "Content-Type: application/json")


def _binary_request() -> bytes:
    rows = np.random.default_rng(1).uniform(-1, 1, IMAGE).astype(np.float32)
    head = (
        f'{{"inputs":[{{"name":"x","shape":{list(IMAGE)},"datatype":"FP32",'
        f'"parameters":{{"binary_data_size":{rows.nbytes}}}}}]}}'
    ).encode()
    header = f"Inference-Header-Content-Length: {len(head)}"
    return http("POST", PATH, head + rows.tobytes(), header)


def _pair(folder: Path, model: bytes, shape: tuple[int, ...], classes: int) -> tuple[Path, Path]:
    state = folder / f"state-{shape[-1]}"
    deploy(state, add_bundle(state, model, contract(shape, classes)))
    path = folder / f"{shape[-1]}.onnx"
    path.write_bytes(model)
    return state, path


def _bare(path: Path, port: int) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("bare_server.py")), str(path), str(port)]


def _small(folder: Path) -> list[Row]:
    state, path = _pair(folder, small_model(), (1, FEATURES), CLASSES)
    request = _json_request()
    with ExitStack() as stack:
        ports = {"edgekit": free_port(), "bare loop": free_port()}
        stack.enter_context(agent(state, ports["edgekit"], core=0))
        stack.enter_context(running(_bare(path, ports["bare loop"]), ports["bare loop"], core=0))
        requests = dict.fromkeys(ports, request)
        for peer in available():
            port, peer_path = start_peer(stack, peer, path)
            ports[peer], requests[peer] = port, _json_request(peer_path)
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(ROUNDS + 1):
            for name, port in ports.items():
                took = load(port, requests[name], connections=CONNECTIONS, seconds=SECONDS)
                if number:  # the first round warms up
                    rates[name].append(len(took) / SECONDS)
    median = {name: statistics.median(values) for name, values in rates.items()}
    ours, bare = median["edgekit"], median["bare loop"]
    ratio = statistics.median(
        a / b for a, b in zip(rates["edgekit"], rates["bare loop"], strict=True)
    )
    case = f"JSON, {FEATURES} floats, one core, {CONNECTIONS} connections"
    note = f"{ours:.0f} requests/s against {bare:.0f}"
    rows = [
        Row(
            case,
            "time per request",
            1e6 / ours,
            ">= 70 % of the bare loop's rate",
            ratio >= 0.7,
            "uvicorn + msgspec + onnxruntime",
            1e6 / bare,
            ratio,
            note,
        )
    ]
    others = {name: rate for name, rate in median.items() if name not in ("edgekit", "bare loop")}
    if not others:
        note = (
            "no peer could be installed in this run (EDGEKIT_BENCH_PEERS names a folder of venvs)"
        )
        goal = ">= 4 x the best of MLServer, BentoML, LitServe"
        return [*rows, Row(case, "time per request", 1e6 / ours, goal, False, note=note)]
    best = max(others, key=others.__getitem__)
    for name, rate in sorted(others.items()):
        goal = ">= 4 x the best peer's rate" if name == best else "-"
        met = ours >= 4 * rate
        note = f"{ours:.0f} requests/s against {rate:.0f}"
        rows.append(
            Row(
                case, "time per request", 1e6 / ours, goal, met, name, 1e6 / rate, ours / rate, note
            )
        )
    return rows


def _image(folder: Path) -> list[Row]:
    state, path = _pair(folder, image_model(), IMAGE, 1000)
    alone = _alone(path)
    request = _binary_request()
    # Beyond the inference of the same round: the machine's pace changes by more than that.
    beyond: dict[str, list[float]] = {"edgekit": [], "bare loop": []}
    inference: list[float] = []
    with ExitStack() as stack:
        ports = {"edgekit": free_port(), "bare loop": free_port()}
        stack.enter_context(agent(state, ports["edgekit"]))
        stack.enter_context(running(_bare(path, ports["bare loop"]), ports["bare loop"]))
        for number in range(3 * (ROUNDS + 1)):
            inference_us = statistics.median(alone()) * 1e6
            for name, port in ports.items():
                took = load(port, request, connections=1, seconds=SECONDS / 3)
                if number > 2:
                    beyond[name].append(statistics.median(took) * 1e6 - inference_us)
            inference.append(inference_us)
    ours, bare = (statistics.median(beyond[name]) for name in ("edgekit", "bare loop"))
    note = (
        f"inference alone {statistics.median(inference):.0f} us; medians of {len(inference)} rounds"
    )
    return [
        Row(
            "binary, 150,528 floats, MobileNet-shaped",
            "p50 beyond the inference",
            ours,
            "<= 1 ms",
            ours <= 1000,
            "uvicorn + msgspec + onnxruntime",
            bare,
            ours / bare if bare > 0 else None,
            note,
        )
    ]


def _alone(path: Path) -> Callable[[], list[float]]:
    """Times inferences in this process; seconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"x": np.random.default_rng(1).uniform(-1, 1, IMAGE).astype(np.float32)}

    def run() -> list[float]:
        took = []
        for _ in range(30):
            begun = time.perf_counter()
            session.run(None, feed)
            took.append(time.perf_counter() - begun)
        return took[5:]

    return run


def main() -> None:
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    with tempfile.TemporaryDirectory() as folder:
        rows = _small(Path(folder))
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
        rows += _image(Path(folder))
    write("runtime_endpoint", "Endpoint", rows, __doc__ or "")


if __name__ == "__main__":
    main()
