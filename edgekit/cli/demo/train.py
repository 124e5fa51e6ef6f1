"""Train a small convolution net in seconds, without a training framework, and write it as ONNX.

Two layers of random convolution kernels with ReLU, average and maximum over time, then a linear
head in closed form (ridge regression). After Dempster, Petitjean & Webb, "ROCKET", Data Mining and
Knowledge Discovery 34 (2020), with pooling that ONNX has operators for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.cli.demo.data import HOURS, Split

Array = npt.NDArray[Any]

DILATIONS = (1, 2)
LENGTHS = (7, 5)  # kernel length of the first and the second layer
RIDGE = 300.0
SHARPNESS = 4.0  # scale of the scores before softmax: ridge scores lie in about [-1, 1]
OPSET = 17
IR_VERSION = 9  # the newest that onnxruntime 1.20 reads
INPUT, OUTPUT = "power", "season_probability"
LABELS = ("winter", "summer")


@dataclass(frozen=True)
class Layer:
    """Convolution: weights (kernels, channels, length), biases (kernels,)."""

    dilation: int
    weights: Array
    biases: Array

    def response(self, x: Array) -> Array:
        """ReLU of the convolution of ``x`` (n, channels, time)."""
        raw = _convolve(x, self.weights, self.dilation) + self.biases[:, None]
        return np.asarray(np.maximum(raw, 0.0))


def _convolve(x: Array, weights: Array, dilation: int) -> Array:
    length = weights.shape[2]
    positions = x.shape[2] - (length - 1) * dilation
    taps = np.arange(positions)[:, None] + np.arange(length) * dilation
    return np.asarray(np.einsum("ncpl,kcl->nkp", x[:, :, taps], weights, optimize=True))


def _random_layer(
    x: Array, kernels: int, length: int, dilation: int, rng: np.random.Generator
) -> Layer:
    channels = x.shape[1]
    weights = rng.standard_normal((kernels, channels, length)) / np.sqrt(channels * length)
    weights = (weights - weights.mean(axis=(1, 2), keepdims=True)).astype(np.float32)
    response = _convolve(x, weights, dilation)
    # A bias at a random quantile of the kernel's own response makes ReLU cut within the data.
    shares = rng.random(kernels)
    biases = [-np.quantile(response[:, k], share) for k, share in enumerate(shares)]
    return Layer(dilation, weights, np.asarray(biases, dtype=np.float32))


def _random_branches(
    x: Array, kernels: tuple[int, int], rng: np.random.Generator
) -> list[tuple[Layer, Layer]]:
    branches = []
    for dilation in DILATIONS:
        first = _random_layer(x, kernels[0], LENGTHS[0], dilation, rng)
        second = _random_layer(first.response(x), kernels[1], LENGTHS[1], 1, rng)
        branches.append((first, second))
    return branches


def _features(x: Array, branches: list[tuple[Layer, Layer]]) -> Array:
    parts = []
    for branch in branches:
        active = x
        for layer in branch:
            active = layer.response(active)
            parts += [active.mean(axis=2), active.max(axis=2)]
    return np.concatenate(parts, axis=1)


def _head(features: Array, y: Array) -> dict[str, Array]:
    """Constants of the ridge head: standardise each feature, then a linear layer.

    Standardising stays in the graph instead of being folded into the weights: averages and maxima
    differ in range by much, and one quantization scale for all of them would drown the small ones.
    """
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = (features - mean) / std
    target = np.eye(len(LABELS))[y] * 2.0 - 1.0
    offset = target.mean(axis=0)
    gram = scaled.T @ scaled + RIDGE * np.eye(scaled.shape[1])
    return {
        "mean": mean,
        "scale": 1.0 / std,
        "head.weight": SHARPNESS * np.linalg.solve(gram, scaled.T @ (target - offset)),
        "head.bias": SHARPNESS * offset,
    }


def train(data: Split, path: Path, *, kernels: tuple[int, int], seed: int) -> None:
    """Train on ``data`` and write the model to ``path``: (batch, 24) to class probabilities."""
    series = data.x[:, None, :]
    branches = _random_branches(series, kernels, np.random.default_rng(seed))
    head = _head(_features(series, branches), data.y)
    onnx.save(_model(branches, head), str(path))


def _branch_nodes(
    branch: tuple[Layer, Layer], constants: dict[str, Array], pooled: list[str]
) -> list[onnx.NodeProto]:
    nodes, source = [], "series"
    for depth, layer in enumerate(branch):
        name = f"branch{branch[0].dilation}.conv{depth}"
        constants[f"{name}.weight"], constants[f"{name}.bias"] = layer.weights, layer.biases
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        source = f"{name}.relu"
        nodes += [
            helper.make_node("Conv", inputs, [name], name=name, dilations=[layer.dilation]),
            helper.make_node("Relu", [name], [source], name=source),
        ]
        for pool in ("GlobalAveragePool", "GlobalMaxPool"):
            pooled.append(f"{name}.{pool}")
            nodes.append(helper.make_node(pool, [source], [pooled[-1]], name=pooled[-1]))
    return nodes


def _model(branches: list[tuple[Layer, Layer]], head: dict[str, Array]) -> onnx.ModelProto:
    constants = {name: value.astype(np.float32) for name, value in head.items()}
    constants["axis"] = np.asarray([1], dtype=np.int64)
    pooled: list[str] = []
    nodes = [helper.make_node("Unsqueeze", [INPUT, "axis"], ["series"], name="series")]
    for branch in branches:
        nodes += _branch_nodes(branch, constants, pooled)
    linear = ["standardised", "head.weight", "head.bias"]
    nodes += [
        helper.make_node("Concat", pooled, ["pooled"], name="pooled", axis=1),
        helper.make_node("Flatten", ["pooled"], ["features"], name="features", axis=1),
        helper.make_node("Sub", ["features", "mean"], ["centred"], name="centred"),
        helper.make_node("Mul", ["centred", "scale"], ["standardised"], name="standardised"),
        helper.make_node("Gemm", linear, ["scores"], name="head"),
        helper.make_node("Softmax", ["scores"], [OUTPUT], name="softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "meter",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", HOURS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edgekit-demo"
    )
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model
