"""What a normalised graph consists of, as far as the choice of candidates depends on it."""

from __future__ import annotations

import onnx

from edgekit.build.candidates import DYNAMIC_OPS, WEIGHT_OPS, Layer, Structure

_LAYER_OPS = WEIGHT_OPS | DYNAMIC_OPS
_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a unique name: nodes are selected by name, and names are optional in ONNX."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        while node.name in seen:
            node.name += "_"
        seen.add(node.name)


def layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The nodes that multiply by constant weights, in graph order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        Layer(node.name, node.op_type)
        for node in model.graph.node
        if node.op_type in _LAYER_OPS and len(node.input) > 1 and node.input[1] in weights
    )


def structure_of(model: onnx.ModelProto) -> Structure:
    """The structure of a model whose nodes have names."""
    ops = {node.op_type for node in model.graph.node}
    return Structure(
        layers=layers(model),
        ops=tuple(sorted(ops)),
        quantized=bool(ops & _QUANTIZED_OPS),
        attention="Softmax" in ops and _multiplies_activations(model),
    )


def _multiplies_activations(model: onnx.ModelProto) -> bool:
    constant = {tensor.name for tensor in model.graph.initializer}
    constant |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return any(
        node.op_type == "MatMul" and constant.isdisjoint(node.input) for node in model.graph.node
    )
