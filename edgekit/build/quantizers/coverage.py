"""How much of what was quantized an engine really computes in integers.

Q/DQ pairs around a layer are a wish: an engine that has no integer kernel for it multiplies in
float and is slower than before, silently. So the engine is asked what it made of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from edgekit.build.candidates import WEIGHT_OPS
from edgekit.build.quantizers.base import initializers

_FLOAT_OPS = WEIGHT_OPS | {"FusedConv", "FusedGemm", "FusedMatMul"}
_LOG_FATAL = 4


def of_onnx(made: onnx.ModelProto, scratch: Path) -> float | None:
    """Share of the layers with quantized weights that ONNX Runtime runs by integer kernels.

    None where no layer has its weights behind a DequantizeLinear with quantized inputs.

    Raises:
        Exception: whatever ONNX Runtime raises.
    """
    wanted = len(_layers_between_pairs(made))
    if not wanted:
        return None
    seen = scratch / "optimised.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.optimized_model_filepath = str(seen)
    # What devices use; layouts and fusions of one CPU come with the level above.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = len(_layers_between_pairs(onnx.load(seen)))
    return (wanted - left) / wanted


def _layers_between_pairs(model: onnx.ModelProto) -> list[str]:
    """Float layers whose weights and inputs are dequantized just before."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constant = set(initializers(model))
    found = []
    for node in model.graph.node:
        if node.op_type not in _FLOAT_OPS or len(node.input) < 2:
            continue
        data, weight = (makers.get(name) for name in node.input[:2])
        stored = (
            weight is not None
            and weight.op_type == "DequantizeLinear"
            and _from_constant(weight, makers, constant)
        )
        if stored and data is not None and data.op_type == "DequantizeLinear":
            found.append(node.name or node.output[0])
    return found


def _from_constant(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constant: set[str]
) -> bool:
    """Whether what ``node`` dequantizes is stored, or quantized from what is stored."""
    source = node.input[0]
    before = makers.get(source)
    return source in constant or (
        before is not None and before.op_type == "QuantizeLinear" and before.input[0] in constant
    )


def of_openvino(compiled: Any, wanted: int) -> float | None:
    """Share of ``wanted`` layers that OpenVINO runs by integer kernels; None without any.

    Args:
        compiled: the compiled model.
        wanted: how many layers the candidate quantizes.
    """
    if not wanted:
        return None
    layers = 0
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        kind = info["layerType"].astype(str) if "layerType" in info else ""
        precision = info["runtimePrecision"].astype(str) if "runtimePrecision" in info else ""
        if kind in {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}:
            layers += precision in {"i8", "u8"}
    return min(1.0, layers / wanted)
