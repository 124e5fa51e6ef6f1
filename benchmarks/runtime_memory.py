"""What does the agent add in memory and at start, beside a bare Python with onnxruntime?

Both hold the same MobileNet-shaped model and have answered once. Runs alternate; a ratio is the
median of those within a round, since machines change their speed between rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from device import (
    IMAGE,
    MODEL,
    add_bundle,
    agent,
    contract,
    deploy,
    exchange,
    free_port,
    http,
    install_runtime,
)
from device import image_model as model_bytes
from harness import Row, write

Run = tuple[float, int]  # seconds to the first answer, bytes then
ROUNDS = int(os.environ.get("EDGEKIT_BENCH_ROUNDS", "31"))
_NOTE = "over HTTP, from the {}'s command to the answer"
_BARE = """
import sys
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.zeros((1, 3, 224, 224), np.float32)})
print("answered", flush=True)
sys.stdin.read()
"""


def _pss_bytes(pid: int) -> int:
    """Proportional share: pages that processes share are split between them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            yield from _family(int(child))


def _bare(path: Path) -> tuple[float, int]:
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _BARE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        took = time.perf_counter() - begun
        size = _pss_bytes(process.pid)
        process.communicate()
    return took, size


def _ours(state: Path, *, supervised: bool = True) -> tuple[float, int]:
    rows = 4 * 3 * 224 * 224
    head = (
        f'{{"inputs":[{{"name":"x","shape":{list(IMAGE)},"datatype":"FP32",'
        f'"parameters":{{"binary_data_size":{rows}}}}}]}}'
    ).encode()
    header = f"Inference-Header-Content-Length: {len(head)}"
    request = http("POST", f"/v2/models/{MODEL}/infer", head + bytes(rows), header)
    begun, port = time.perf_counter(), free_port()
    with agent(state, port, supervised=supervised) as pid:
        if exchange(port, request)[9:12] != b"200":
            raise SystemExit("the agent does not answer")
        took = time.perf_counter() - begun
        return took, sum(_pss_bytes(each) for each in _family(pid))


class _Figure(NamedTuple):
    """One part of a run, and what it may be beside the bare process's."""

    part: int
    unit: float
    goal: float


_START, _PSS = _Figure(0, 1e6, 1.5), _Figure(1, 1e-6, 1.8)


def _row(what: str, figure: _Figure, bare: Sequence[Run], ours: Sequence[Run], note: str) -> Row:
    part, unit, goal = figure
    ratio = statistics.median(us[part] / it[part] for us, it in zip(ours, bare, strict=True))
    value, peer = (statistics.median(run[part] for run in runs) * unit for runs in (ours, bare))
    return Row(
        "MobileNet-shaped",
        what,
        value,
        f"<= {goal:g} x bare",
        ratio <= goal,
        "Python + onnxruntime",
        peer,
        ratio,
        note,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model_bytes())
        deploy(folder / "state", add_bundle(folder / "state", model_bytes(), contract(IMAGE, 1000)))
        install_runtime(folder / "state")
        _ours(folder / "state")  # byte code is compiled and files are in the cache from here on
        rounds = [
            (
                _bare(folder / "model.onnx"),
                _ours(folder / "state", supervised=False),
                _ours(folder / "state"),
            )
            for _ in range(ROUNDS)
        ]
    bare, alone, ours = zip(*rounds, strict=True)
    shared = "proportional share: pages that they share are counted once"
    rows = [
        _row(f"start to first answer, {who}", _START, bare, runs, _NOTE.format(who))
        for who, runs in (("agent", alone), ("supervisor", ours))
    ]
    what = "PSS of supervisor, agent and one worker, MB (not us)"
    rows.append(_row(what, _PSS, bare, ours, shared))
    write("runtime_memory", "Memory and start", rows, __doc__ or "")


if __name__ == "__main__":
    main()
