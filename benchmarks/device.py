"""Devices for the runtime benchmarks: models, a state folder, an agent process, an HTTP client."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgekit_runtime.supervisor
from edgekit.build import reference
from edgekit.contracts import bundle, codec, digest, oci
from edgekit.contracts.bundle import BundleFile, BundleManifest
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget, Task
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.reference import Reference
from edgekit.contracts.states import SlotState
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.supervisor.book import Book
from edgekit_runtime.supervisor.rules import fresh
from edgekit_runtime.twocopy import TwoCopy

FEATURES, CLASSES = 32, 8
IMAGE = (1, 3, 224, 224)
MODEL = "bench"
_SEED = 20
SUPERVISOR = Path(edgekit_runtime.supervisor.__file__).with_name("__main__.py")
POLL_S = 0.002  # between looks whether a server answers
# Installed packages have their byte code; this one may say that none is to be written.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _random(generator: np.random.Generator, *shape: int) -> np.ndarray:
    fan_in = int(np.prod(shape[1:])) or 1
    return (generator.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def _graph(nodes: list, values: dict[str, np.ndarray], shape: tuple, classes: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], classes])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.ModelProto.SerializeToString(model)


def small_model() -> bytes:
    """32 features, one hidden layer of 64, 8 classes."""
    generator = np.random.default_rng(_SEED)
    values = {"w1": _random(generator, FEATURES, 64), "w2": _random(generator, 64, CLASSES)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("Softmax", ["c"], ["scores"], axis=-1),
    ]
    return _graph(nodes, values, (1, FEATURES), CLASSES)


def image_model() -> bytes:
    """MobileNet v1's layers (arXiv:1704.04861, table 1) with random weights."""
    generator = np.random.default_rng(_SEED)
    values: dict[str, np.ndarray] = {}
    nodes: list = []
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    plan += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]

    def conv(name: str, source: str, weight: np.ndarray, stride: int, group: int) -> str:
        values[f"{name}_w"] = weight
        pad = weight.shape[2] // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}_w"],
                [f"{name}_c"],
                strides=[stride, stride],
                pads=[pad] * 4,
                group=group,
            )
        )
        nodes.append(helper.make_node("Relu", [f"{name}_c"], [name]))
        return name

    last, channels = conv("first", "x", _random(generator, 32, 3, 3, 3), 2, 1), 32
    for index, (width, stride) in enumerate(plan):
        depthwise = _random(generator, channels, 1, 3, 3)
        last = conv(f"d{index}", last, depthwise, stride, channels)
        last = conv(f"p{index}", last, _random(generator, width, channels, 1, 1), 1, 1)
        channels = width
    values["fc"] = _random(generator, channels, 1000)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    return _graph(nodes, values, IMAGE, 1000)


def contract(shape: tuple[int, ...], classes: int) -> Contract:
    """Guarded like a real one: NaN and range are looked at."""
    return Contract(
        inputs=(InputSpec(name="x", dtype="float32", shape=shape, range=(-10.0, 10.0)),),
        outputs=(
            OutputSpec(
                name="scores", dtype="float32", shape=(shape[0], classes), task=Task.CLASSIFICATION
            ),
        ),
        quality=QualityBudget(metric="agreement", drop_max=0.02),
    )


def watched(shape: tuple[int, ...], found: Contract, rows: int = 256) -> Reference:
    """What the build would have this model's device watch, had it seen such random data."""
    generator = np.random.default_rng(_SEED)
    inputs = generator.uniform(-1, 1, (rows, *shape[1:])).astype(np.float32)
    scores = generator.uniform(0, 1, (rows, int(found.outputs[0].shape[1])))
    derived = reference.derive(found, {"x": inputs}, {"scores": scores.astype(np.float32)})
    assert derived is not None
    return derived


def add_bundle(
    state: Path,
    model: bytes,
    found: Contract,
    version: str = "1",
    watch: Reference | None = None,
) -> SlotRef:
    """Store a bundle's blobs in a state folder."""
    folder = state / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media: str) -> oci.Descriptor:
        name = digest.of_bytes(data)
        (folder / digest.hex_of(name)).write_bytes(data)
        return oci.Descriptor(media_type=media, digest=name, size=len(data))

    parts = {"model": model, "contract": codec.encode(found)}
    if watch is not None:
        parts["reference"] = codec.encode(watch)
    layers = {role: put(data, bundle.FILE_MEDIA_TYPE) for role, data in parts.items()}
    manifest = BundleManifest(
        model=MODEL,
        version=version,
        target="bench",
        precision="fp32",
        engine="onnxruntime",
        engine_versions=">=1.18",
        files=tuple(
            BundleFile(path=role, role=role, sha256=layer.digest, size=layer.size)
            for role, layer in layers.items()
        ),
    )
    outer = oci.Manifest(
        artifact_type=bundle.ARTIFACT_TYPE,
        config=put(codec.encode(manifest), bundle.CONFIG_MEDIA_TYPE),
        layers=tuple(layers.values()),
    )
    name = put(codec.encode(outer), "").digest
    return SlotRef(
        digest=name, version=version, target="bench", release=version, rollout="", wave=0
    )


def deploy(state: Path, ref: SlotRef) -> None:
    """Make ``ref`` the confirmed bundle of a device that does not run."""
    model = ModelRecord(state=SlotState.CONFIRMED, active=ref, confirmed=True)
    (state / "blobs").mkdir(parents=True, exist_ok=True)
    TwoCopy(PosixDisk(), state, "record", DeploymentRecord).save(
        DeploymentRecord(gen=1, models={MODEL: model})
    )


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, *, core: int | None = None) -> Iterator[int]:
    """A server process, optionally on one core; yields its pid once it listens."""
    pinned = ["taskset", "-c", str(core), *command] if core is not None else command
    process = subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(POLL_S)
        else:
            raise SystemExit(f"{command[:4]} does not listen on {port}")
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def agent_config(folder: Path, state: Path, port: int, *, broker: int) -> Path:
    """Configuration of an agent over ``state``, in a file."""
    config = folder / "agent.toml"
    config.write_text(
        f'[device]\nid = "bench"\nstate_dir = "{state}"\ntargets = ["bench"]\n'
        f'[broker]\nport = {broker}\n[serve]\nport = {port}\nsocket = "{folder}/s"\n'
    )
    return config


def install_runtime(state: Path) -> None:
    """Make this environment the proven runtime of a device, for its supervisor to start."""
    name = "sha256:" + "0" * 64
    folder = state / "runtimes" / digest.hex_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agent.py").write_text("from edgekit_runtime.__main__ import main\nmain()\n")
    Book(str(state)).save({**fresh(name), "confirmed": True})


@contextmanager
def agent(
    state: Path, port: int, *, core: int | None = None, supervised: bool = False
) -> Iterator[int]:
    """An agent over ``state``; no broker is there, as on a device in the field.

    Yields its pid, or its supervisor's.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = agent_config(Path(folder), state, port, broker=free_port())
        start = [sys.executable, "-m", "edgekit_runtime"]
        if supervised:
            start = [sys.executable, "-I", "-S", str(SUPERVISOR), str(state)]
        command = [*start, "run", "--config", str(config)]
        with running(command, port, core=core) as pid:
            ready = http("GET", f"/v2/models/{MODEL}/ready")
            while exchange(port, ready)[9:12] != b"200":
                time.sleep(POLL_S)
            yield pid


def http(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """Bytes of a request that keeps the connection."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def exchange(port: int, request: bytes) -> bytes:
    """One request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        return send(connection, request)


def send(connection: socket.socket, request: bytes) -> bytes:
    """One request on ``connection``; the whole answer."""
    connection.sendall(request)
    data = b""
    while not complete(data):
        part = connection.recv(1 << 20)
        if not part:
            raise SystemExit(f"connection closed after {data[:200]!r}")
        data += part
    return data


def complete(data: bytes) -> bool:
    """Whether ``data`` is a whole answer with a content length."""
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
    return len(body) >= int(length)


def load(port: int, request: bytes, *, connections: int, seconds: float) -> list[float]:
    """Answer times in seconds of a closed loop; fails on any answer that is not 200."""
    selector = selectors.DefaultSelector()
    sockets = [
        socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(connections)
    ]
    took: list[float] = []
    begun: dict[int, float] = {}
    parts: dict[int, bytes] = {}
    for each in sockets:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(each, selectors.EVENT_READ)
        begun[each.fileno()] = time.perf_counter()
        each.sendall(request)
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in selector.select(1.0):
            each = key.fileobj
            assert isinstance(each, socket.socket)
            data = parts.pop(key.fd, b"") + each.recv(1 << 20)
            if not complete(data):
                parts[key.fd] = data
                continue
            if data[9:12] != b"200":
                raise SystemExit(f"refused: {data[:300]!r}")
            now = time.perf_counter()
            took.append(now - begun[key.fd])
            begun[key.fd] = now
            each.sendall(request)
    for each in sockets:
        each.close()
    return took
