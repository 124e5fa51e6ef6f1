"""Peak memory of calibration against the number of samples, beside that of plain inference."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from harness import Row
from onnx import TensorProto, helper, numpy_helper

from edgekit.contracts import codec
from edgekit.registry import graph, infer

SAMPLES = (10, 100, 1000, 10000)
SIDE, CHANNELS, LAYERS = 16, 32, 6
RATIO_MAX = 1.5

_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
if sys.argv[0] == "-":
    exec(sys.argv[2])
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
# Not getrusage: that begins with what the parent had resident.
lines = open("/proc/self/status").read().splitlines()
print("peak", next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")))
"""
_INFER = f"""
import numpy as np, onnxruntime as ort, onnx
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
for _ in range(10):
    session.run(None, {{"x": np.zeros((16, 3, {SIDE}, {SIDE}), np.float32)}})
"""


def _model(path: Path) -> onnx.ModelProto:
    """A plain chain of convolutions."""
    rng = np.random.default_rng(0)
    nodes, tensors, last, inputs = [], [], "x", 3
    for index in range(LAYERS):
        weight = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (CHANNELS, inputs, 3, 3))
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes.append(
            helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], name=f"c{index}", **pads)
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, inputs = f"r{index}", CHANNELS
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    made = helper.make_model(
        helper.make_graph(
            nodes, "g",
            [value("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
            [value("y", TensorProto.FLOAT, ["n", CHANNELS])], tensors,
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(made, path)
    return made


def _peak(*words: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.rsplit("peak", 1)[1])


def memory_rows() -> list[Row]:
    """One row a number of samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _model(folder / "m.onnx")
        contract = infer.contract_of(graph.facts(model, "m"), None).contract
        plain = _peak("-", str(folder / "m.onnx"), _INFER)
        rows = []
        case = f"{LAYERS} convolutions of {CHANNELS} channels"
        for n in SAMPLES:
            x = np.random.default_rng(1).normal(size=(n, 3, SIDE, SIDE)).astype(np.float32)
            np.savez(folder / "x.npz", x=x)
            request = {
                "model": str(folder / "m.onnx"),
                "data": str(folder / "x.npz"),
                "contract": json.loads(codec.encode(contract)),
                "target": str(folder / "ranges.json"),
            }
            (folder / "request.json").write_text(json.dumps(request))
            peak = _peak("edgekit.build.quantizers.calibrate", str(folder / "request.json"))
            rows.append(
                Row(case, f"calibration peak, {n} samples, MB (not us)",
                    peak / 1e6, f"<= {RATIO_MAX} x inference", peak <= RATIO_MAX * plain,
                    "inference of 16 samples", plain / 1e6, peak / plain)
            )  # fmt: skip
        return rows
