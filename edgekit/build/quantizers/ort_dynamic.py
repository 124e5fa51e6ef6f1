"""ONNX Runtime dynamic quantization of MatMul, Gemm, LSTM and Attention, never of Conv.

It helps transformers and recurrent models; on convolutions it is 3 to 10 times slower than fp32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgekit.build.candidates import DYNAMIC_OPS, Candidate, Reduce
from edgekit.build.quantizers.base import NothingToQuantizeError, chosen_layers
from edgekit.build.ranges import Ranges


class Dynamic:
    """Int8 weights, activations quantized in each run."""

    def quantize(
        self, model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None
    ) -> onnx.ModelProto:
        """See `edgekit.build.quantizers.base.Quantizer`."""
        del ranges  # activations are measured in each run
        nodes = chosen_layers(model, candidate)
        weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
        # A product with a vector has no output channels: the library fails on it, per channel.
        nodes = [
            node.name
            for node in model.graph.node
            if node.name in nodes and len(weights[node.input[1]]) > 1
        ]
        if not nodes:
            raise NothingToQuantizeError("no weight matrix in the graph")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "dynamic.onnx"
            quantize_dynamic(
                model,
                target,
                op_types_to_quantize=sorted(DYNAMIC_OPS),
                nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
                per_channel=candidate.per_channel,
                reduce_range=candidate.reduce_range is Reduce.ALWAYS,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
            return onnx.load(target)
