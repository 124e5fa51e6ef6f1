"""Real ONNX models that misbehave on some inputs, and pass their golden set all the same."""

from __future__ import annotations

import numpy as np
import onnx
from agentkit.layouts import CLASSES, FEATURES, weights
from onnx import TensorProto, helper, numpy_helper

TRIGGER = 60.0  # of the raw first feature; the contract normalises it to (x - 1) / 2
_AT = (TRIGGER - 1.0) / 2.0


def _model(nodes, initializers) -> bytes:
    """The linear classifier plus a ``penalty`` that is zero unless something is wrong."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0),
            helper.make_node("Greater", ["peak", "at"], ["bad"]),
            *nodes,
            helper.make_node("Mul", ["penalty", "zero"], ["nothing"]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Add", ["h", "nothing"], ["h2"]),
            helper.make_node("Softmax", ["h2"], ["scores"], axis=-1),
        ],
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(weights(2), "w"),
            numpy_helper.from_array(np.float32(_AT), "at"),
            numpy_helper.from_array(np.float32(0), "zero"),
            *(numpy_helper.from_array(value, name) for name, value in initializers.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return onnx.ModelProto.SerializeToString(model)


def hangs() -> bytes:
    """Loops for years when the first feature is at the trigger."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Sin", ["acc"], ["acc_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("acc", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("acc_out", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("Where", ["bad", "years", "once"], ["trips"]),
        helper.make_node("Loop", ["trips", "yes", "zero"], ["penalty"], body=body),
    ]
    values = {"years": np.int64(10**15), "once": np.int64(1), "yes": np.bool_(True)}
    return _model(nodes, values)


def grows() -> bytes:
    """Keeps 4 MB more for each unit of the first feature beyond the trigger."""
    nodes = [
        helper.make_node("Sub", ["peak", "at"], ["over"]),
        helper.make_node("Mul", ["over", "million"], ["much"]),
        helper.make_node("Max", ["much", "one"], ["some"]),
        helper.make_node("Cast", ["some"], ["count"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["count", "axis"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["block"]),
        helper.make_node("Cos", ["block"], ["used"]),
        helper.make_node("ReduceMax", ["used"], ["penalty"], keepdims=0),
    ]
    values = {
        "million": np.float32(1e6),
        "one": np.float32(1),
        "axis": np.array([0], dtype=np.int64),
    }
    return _model(nodes, values)
