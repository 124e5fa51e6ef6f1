"""What a quantizer is: a function from a float model to another one, for one candidate."""

from __future__ import annotations

from typing import Any, Protocol

import onnx

from edgekit.build.candidates import Candidate
from edgekit.build.ranges import Ranges
from edgekit.build.steps.structure import structure_of

# What ONNX Runtime's static quantizer knows. Written out, because importing that quantizer takes
# 14 MB, and calibration has to know the operators while it keeps to the memory of an inference.
QUANTIZABLE_OPS = frozenset(
    """
    Add ArgMax AveragePool BatchNormalization Clip Concat Conv ConvTranspose CumSum
    EmbedLayerNormalization Flatten Gather GatherElements Gemm GlobalAveragePool
    InstanceNormalization LayerNormalization LeakyRelu MatMul MaxPool Mul Pad Relu Reshape
    Resize Sigmoid Slice Softmax Split Squeeze TopK Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - thirty-four quoted words are no easier to read
)


class NothingToQuantizeError(Exception):
    """The graph has no operator this candidate is about."""


class Quantizer(Protocol):
    """One scheme. ``ranges`` are given to those whose candidates need them."""

    def quantize(
        self, model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None
    ) -> onnx.ModelProto:
        """The quantized form of ``model``, which is the quantizer's own to change.

        Raises:
            NothingToQuantizeError: no operator to quantize.
            Exception: whatever a foreign library raises.
        """


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Constant tensors by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of a node's attribute."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def channel_axis(node: onnx.NodeProto) -> int:
    """Axis of a weight along which each output channel has a scale of its own."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return 0
    return 1  # ConvTranspose [in, out / group, …], Gemm and MatMul [in, out]


def chosen_layers(model: onnx.ModelProto, candidate: Candidate) -> list[str]:
    """Names of the nodes ``candidate`` quantizes.

    Raises:
        NothingToQuantizeError: there is none.
    """
    names = candidate.layers_of(structure_of(model))
    if not names:
        raise NothingToQuantizeError(
            "no Conv, ConvTranspose, MatMul or Gemm with constant weights in the graph"
        )
    return list(names)
