"""A second model that takes the first one's scores: three numbers in, two out."""

from __future__ import annotations

import numpy as np
import onnx
from agentkit.layouts import npz
from onnx import TensorProto, helper, numpy_helper

from edgekit.contracts import codec
from edgekit.contracts.composition import Link
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget

LINK = Link(input="s", model="meter", output="scores", inputs=("x",))
_WEIGHTS = np.random.default_rng(11).normal(size=(3, 2)).astype(np.float32)


def reference(scores: np.ndarray) -> np.ndarray:
    return scores @ _WEIGHTS


def contract() -> Contract:
    return Contract(
        inputs=(InputSpec(name="s", dtype="float32", shape=("n", 3)),),
        outputs=(OutputSpec(name="y", dtype="float32", shape=("n", 2)),),
        quality=QualityBudget(metric="top1", drop_max=0.02),
    )


def add(writer, version: str = "1") -> str:
    """Adds it to a layout as the model ``second``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["s", "w"], ["y"])],
        "second",
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(_WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = np.random.default_rng(12).random(size=(8, 3)).astype(np.float32)
    files = {
        "model": onnx.ModelProto.SerializeToString(model),
        "contract": codec.encode(contract()),
        "golden": npz({"in.s": rows, "out.y": reference(rows)}),
    }
    return writer.add(model="second", version=version, tag=f"second-{version}", files=files)
