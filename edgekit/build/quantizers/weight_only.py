"""Weights as int8 with a scale per output channel; arithmetic stays float.

A quarter of the size at nearly no loss. Speed is not its point: the engine widens the weights in
each run, so it wins where size is what counts, or where memory bandwidth is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgekit.build.candidates import Candidate
from edgekit.build.quantizers.base import (
    NothingToQuantizeError,
    channel_axis,
    chosen_layers,
    initializers,
)
from edgekit.build.ranges import Ranges

_ELEMENTS_MIN = 64  # below, the node that is added weighs more than what is saved


class WeightOnly:
    """DequantizeLinear in front of each weight."""

    def quantize(
        self, model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None
    ) -> onnx.ModelProto:
        """See `edgekit.build.quantizers.base.Quantizer`."""
        del ranges  # activations stay float
        names = set(chosen_layers(model, candidate))
        weights = initializers(model)
        made: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            if node.name not in names or node.op_type in {"LSTM", "Attention"}:
                continue
            tensor = weights[node.input[1]]
            if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
                continue
            if np.prod(tensor.dims) < _ELEMENTS_MIN:
                continue
            if tensor.name not in made:
                made[tensor.name] = _dequantize(model.graph, tensor, channel_axis(node))
            node.input[1] = made[tensor.name].output[0]
        if not made:
            raise NothingToQuantizeError("no weight large enough to gain from int8 storage")
        for index, added in enumerate(made.values()):
            model.graph.node.insert(index, added)
        _drop_unused(model, set(made))
        return model


def _dequantize(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> onnx.NodeProto:
    values = numpy_helper.to_array(tensor)
    others = tuple(index for index in range(values.ndim) if index != axis)
    peak = np.abs(values).max(axis=others)
    scale = np.where(peak > 0, peak / 127.0, 1.0).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(values.ndim)]
    rounded = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
    names = [f"{tensor.name}_{part}" for part in ("int8", "scale", "zero")]
    arrays: tuple[npt.NDArray[Any], ...] = (rounded, scale, np.zeros(scale.shape, np.int8))
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)
    )
    return helper.make_node(
        "DequantizeLinear",
        names,
        [f"{tensor.name}_float"],
        name=f"{tensor.name}_dequantize",
        axis=axis,
    )


def _drop_unused(model: onnx.ModelProto, candidates: set[str]) -> None:
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    for tensor in list(model.graph.initializer):
        if tensor.name in candidates and tensor.name not in used:
            model.graph.initializer.remove(tensor)
