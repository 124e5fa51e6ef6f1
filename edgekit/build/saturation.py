"""Saturation linter: where 16-bit sums of u8 x s8 products can overflow. Pure.

Without VNNI, x86 multiplies with VPMADDUBSW: two neighbouring products are added in 16 bits and
*saturate*, silently. Signed activations are shifted to unsigned first, so they saturate alike.
The worst case of a pair follows from its two weights and from what calibration saw of the two
inputs; a layer that cannot exceed it keeps all 8 bits, the others are reduced to 7 (64 + 64 times
255 fits). Source: Intel SDM, VPMADDUBSW; onnxruntime MLAS, U8S8 kernels for AVX2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgekit.build.candidates import CONVOLUTIONS, WEIGHT_OPS, Candidate
from edgekit.build.quantizers.base import channel_axis, chosen_layers, initializers
from edgekit.build.ranges import Range, Ranges

Array = npt.NDArray[Any]
_HIGH, _LOW = 32767, -32768
_MARGIN = 1.1  # inputs in the field exceed what calibration saw
_WEIGHT_MAX = 127
_INPUT_MAX = 255


def layers(model: onnx.ModelProto, candidate: Candidate, ranges: Ranges) -> tuple[str, ...]:
    """Layers of a float model that could saturate when ``candidate`` quantizes them at 8 bits."""
    chosen = set(chosen_layers(model, candidate))
    weights = initializers(model)
    return tuple(
        node.name
        for node in model.graph.node
        if node.name in chosen and _float_layer_saturates(node, weights, candidate, ranges)
    )


def quantized_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Layers of a QDQ model that could saturate; nothing is known about its inputs."""
    tensors = initializers(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHT_OPS and _quantized_layer_saturates(node, makers, tensors)
    )


def saturates(rows: Array, low: Array, high: Array) -> bool:
    """Whether two neighbouring products of any channel can leave 16 bits.

    Args:
        rows: quantized weights in the order they are multiplied, shape (channels, inputs).
        low: least unsigned value of each input, shape (inputs,).
        high: greatest unsigned value of each input.
    """
    if rows.shape[1] < 2:
        return False
    products = np.stack([rows * low, rows * high])
    up, down = products.max(axis=0), products.min(axis=0)
    highest = (up[:, :-1] + up[:, 1:]).max()
    lowest = (down[:, :-1] + down[:, 1:]).min()
    return bool(highest > _HIGH or lowest < _LOW)


def _float_layer_saturates(
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    candidate: Candidate,
    ranges: Ranges,
) -> bool:
    values = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
    axis = channel_axis(node) if values.ndim > 1 else 0
    others = tuple(index for index in range(values.ndim) if index != axis)
    peak = np.abs(values).max(axis=others if candidate.per_channel else None, keepdims=True)
    scaled = np.divide(values * _WEIGHT_MAX, peak, out=np.zeros_like(values), where=peak > 0)
    found = ranges.tensors.get(node.input[0])
    bounds = None if found is None else _input_bounds(found, found.by(candidate.calibration))
    return any(saturates(*order) for order in _orders(node, np.rint(scaled), axis, bounds))


def _quantized_layer_saturates(
    node: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    tensors: Mapping[str, onnx.TensorProto],
) -> bool:
    maker = makers.get(node.input[1])
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in tensors:
        return False
    values = numpy_helper.to_array(tensors[maker.input[0]])
    if values.dtype != np.int8 or values.ndim < 2:
        return False
    orders = _orders(node, values.astype(np.float64), channel_axis(node), None)
    return any(saturates(*order) for order in orders)


def _input_bounds(found: Range, limits: tuple[float, float]) -> tuple[Array, Array]:
    """Least and greatest unsigned value of each input channel; zero is always possible."""
    low, high = min(0.0, limits[0]), max(0.0, limits[1])
    scale = (high - low) / _INPUT_MAX or 1.0
    zero = round(-low / scale)
    lows = np.asarray(found.low or (low,)) * _MARGIN
    highs = np.asarray(found.high or (high,)) * _MARGIN

    def quantized(values: Array) -> Array:
        return np.asarray(np.clip(np.rint(values / scale) + zero, 0, _INPUT_MAX))

    return np.minimum(quantized(lows), zero), np.maximum(quantized(highs), zero)


def _orders(
    node: onnx.NodeProto, values: Array, axis: int, bounds: tuple[Array, Array] | None
) -> Iterable[tuple[Array, Array, Array]]:
    """Rows with the bounds of their inputs, in each order a kernel may multiply them in."""
    moved = np.moveaxis(values, axis, 0)
    out, inputs = moved.shape[:2] if moved.ndim > 1 else (1, moved.shape[0])
    low, high = bounds or (np.zeros(1), np.full(1, float(_INPUT_MAX)))
    if low.size != inputs:
        # Channels are grouped, or not known one by one: the widest stands for all.
        low, high = np.full(inputs, low.min()), np.full(inputs, high.max())
    if node.op_type not in CONVOLUTIONS or values.ndim < 3:
        yield moved.reshape(out, inputs), low, high
        return
    # [out, in, …]: channel by channel, or pixel by pixel with channels innermost.
    pixels = int(np.prod(moved.shape[2:]))
    rows = moved.reshape(out, inputs, pixels)
    yield rows.reshape(out, -1), np.repeat(low, pixels), np.repeat(high, pixels)
    swapped = rows.transpose(0, 2, 1).reshape(out, -1)
    yield swapped, np.tile(low, pixels), np.tile(high, pixels)
