"""Small real ONNX models and data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LENGTH, CLASSES, HIDDEN = 16, 3, 64


def waves(n: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy sines of three frequencies and their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    time = np.arange(LENGTH) / LENGTH
    clean = np.sin(2 * np.pi * (labels[:, None] + 1) * time)
    return (clean + rng.normal(0, 0.4, (n, LENGTH))).astype(np.float32), labels


def classifier(
    *,
    opset: int = 17,
    constants: bool = False,
    row_bias: bool = False,
    added_bias: bool = False,  # by a node of its own, as exporters write it
    softmax: bool = True,
    batch: int | str = "batch",
    hidden: int = HIDDEN,
    gain: float = 1.0,
) -> onnx.ModelProto:
    """Random features with a fitted linear head: a classifier that is really right."""
    rng = np.random.default_rng(1)
    x, labels = waves(600, seed=7)
    first = rng.normal(0, 0.4, (LENGTH, hidden)).astype(np.float32)
    features = np.maximum(0, x @ first)
    gram = features.T @ features + 10 * np.eye(hidden)
    head = (np.linalg.solve(gram, features.T @ np.eye(CLASSES)[labels]) * 6 * gain).astype("f4")
    bias = np.zeros((1, CLASSES) if row_bias else CLASSES, dtype=np.float32)
    weights = {"first": first, "head": head, "bias": bias}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["m"]),
        helper.make_node("Relu", ["m"], ["f"]),
    ]
    scores = "z" if softmax else "y"
    if added_bias:
        nodes.append(helper.make_node("MatMul", ["f", "head"], ["p"]))
        nodes.append(helper.make_node("Add", ["p", "bias"], [scores]))
    else:
        nodes.append(helper.make_node("Gemm", ["f", "head", "bias"], [scores]))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z"], ["y"], axis=1))
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    if constants:
        made = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
        nodes, tensors = [*made, *nodes], []
    return model(nodes, tensors, batch=batch, opset=opset)


def model(
    nodes: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    *,
    batch: int | str = "batch",
    opset: int = 17,
    inputs: tuple[int | str, ...] | None = None,
    outputs: tuple[int | str, ...] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model from ``x`` [batch, LENGTH], or of another shape, to ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs or [batch, LENGTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs or [batch, CLASSES])],
        tensors,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def relu() -> onnx.ModelProto:
    """A model without weights: nothing to quantize by weight."""
    return model([helper.make_node("Relu", ["x"], ["y"])], [], outputs=("batch", LENGTH))


def prequantized() -> onnx.ModelProto:
    """The classifier with Q/DQ pairs around its first activation."""
    made = classifier()
    made.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(0.05), "scale"),
            numpy_helper.from_array(np.uint8(128), "zero"),
        ]
    )
    pair = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
    ]
    made.graph.node[0].input[0] = "xd"
    for node in reversed(pair):
        made.graph.node.insert(0, node)
    return made


def convolution(channels: int = 8, *, opset: int = 17) -> onnx.ModelProto:
    """``x`` [batch, LENGTH] as a 4 x 4 image, two Conv with Relu, pooling, MatMul."""
    rng = np.random.default_rng(2)
    weights = {
        "w": rng.normal(0, 0.3, (channels, 1, 3, 3)).astype(np.float32),
        "b": np.zeros(channels, np.float32),
        "w2": rng.normal(0, 0.2, (channels, channels, 3, 3)).astype(np.float32),
        "head": rng.normal(0, 0.3, (channels, CLASSES)).astype(np.float32),
        "shape": np.asarray([-1, 1, 4, 4], np.int64),
    }
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("Conv", ["image", "w", "b"], ["c"], name="c1", **conv),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c2"], name="c2", **conv),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["y"], name="head"),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return model(nodes, tensors, opset=opset)


def recurrent(hidden: int = 32) -> onnx.ModelProto:
    """``x`` [batch, LENGTH] as a sequence of single numbers, an LSTM, its last state."""
    rng = np.random.default_rng(3)
    weights = {
        "axis": np.asarray([2], np.int64),
        "w": rng.normal(0, 0.4, (1, 4 * hidden, 1)).astype(np.float32),
        "r": rng.normal(0, 0.2, (1, 4 * hidden, hidden)).astype(np.float32),
        "axes": np.asarray([0], np.int64),
        "head": rng.normal(0, 0.5, (hidden, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["t", "axis"], ["s"]),
        helper.make_node("LSTM", ["s", "w", "r"], ["", "h"], name="lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "axes"], ["last"]),
        helper.make_node("MatMul", ["last", "head"], ["y"], name="head"),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return model(nodes, tensors)


def wide(width: int = 3200) -> onnx.ModelProto:
    """``x`` [batch, LENGTH] through a layer of ``width`` squared weights, 41 MB of them."""
    rng = np.random.default_rng(6)
    weights = {
        "a": rng.normal(0, 0.1, (LENGTH, width)).astype(np.float32),
        "b": rng.normal(0, 0.01, (width, width)).astype(np.float32),
        "c": rng.normal(0, 0.1, (width, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["g"]),
        helper.make_node("Relu", ["g"], ["s"]),
        helper.make_node("MatMul", ["s", "c"], ["y"]),
    ]
    return model(nodes, [numpy_helper.from_array(array, name) for name, array in weights.items()])


def levels() -> onnx.ModelProto:
    """``x`` [batch, LENGTH] by its mean: class 0 below 2, class 1 up to 10, else 2."""
    weights = {
        "mean": np.full((LENGTH, 1), 1 / LENGTH, np.float32),
        "slope": np.asarray([[0, 1, 2]], np.float32),
        "bias": np.asarray([0, -2, -12], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "mean"], ["m"], name="m"),
        helper.make_node("Gemm", ["m", "slope", "bias"], ["y"], name="head"),
    ]
    return model(nodes, [numpy_helper.from_array(array, name) for name, array in weights.items()])


def any_size(channels: int = 8) -> onnx.ModelProto:
    """``x`` [batch, 1, height, width], all of them open: two Conv, a pooling of any size, Gemm.

    A Reshape takes its shape from the graph, as exporters write it: symbolic shape inference of
    ONNX Runtime's pre-processing gives up on such models.
    """
    rng = np.random.default_rng(4)
    weights = {
        "w": rng.normal(0, 0.4, (channels, 1, 3, 3)).astype(np.float32),
        "w2": rng.normal(0, 0.2, (channels, channels, 3, 3)).astype(np.float32),
        "head": rng.normal(0, 0.5, (channels, CLASSES)).astype(np.float32),
        "bias": np.zeros(CLASSES, np.float32),
        "first": np.asarray([0], np.int64),
        "second": np.asarray([2], np.int64),
        "all": np.asarray([-1], np.int64),
    }
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c1", **conv),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c2"], name="c2", strides=[2, 2], **conv),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Shape", ["r2"], ["s"]),
        helper.make_node("Slice", ["s", "first", "second"], ["s2"]),
        helper.make_node("Concat", ["s2", "all"], ["shape"], axis=0),
        helper.make_node("Reshape", ["r2", "shape"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[2], keepdims=0),
        helper.make_node("Gemm", ["mean", "head", "bias"], ["y"], name="head"),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return model(nodes, tensors, inputs=("batch", 1, "height", "width"))


def attention(width: int = 32, tokens: int = 8) -> onnx.ModelProto:
    """``x`` [batch, tokens, width] through a transformer's block, then the mean over tokens.

    One channel behind the normalisation is ten times the others, as in trained ones.
    """
    rng = np.random.default_rng(5)

    def weight(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return (rng.normal(0, gain / np.sqrt(rows), (rows, columns))).astype(np.float32)

    scale = np.ones(width, np.float32)
    scale[3] = 10.0
    weights = {
        "scale": scale,
        "zero": np.zeros(width, np.float32),
        "q": weight(width, width, 3.0),
        "k": weight(width, width, 3.0),
        "v": weight(width, width),
        "o": weight(width, width),
        "up": weight(width, 4 * width),
        "down": weight(4 * width, width),
        "root": np.float32(1 / np.sqrt(width)),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "zero"], ["n"], axis=-1),
        *(helper.make_node("MatMul", ["n", name], [name.upper()]) for name in "qkv"),
        helper.make_node("Transpose", ["K"], ["KT"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["Q", "KT"], ["scores"]),
        helper.make_node("Mul", ["scores", "root"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "V"], ["context"]),
        helper.make_node("MatMul", ["context", "o"], ["out"]),
        helper.make_node("Add", ["x", "out"], ["sum"]),
        helper.make_node("MatMul", ["sum", "up"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "down"], ["narrow"]),
        helper.make_node("Add", ["sum", "narrow"], ["tokens"]),
        helper.make_node("ReduceMean", ["tokens"], ["y"], axes=[1], keepdims=0),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    shape = ("batch", tokens, width)
    return model(nodes, tensors, inputs=shape, outputs=("batch", width))


def sensitive() -> onnx.ModelProto:
    """Four layers; in the second, one row outweighs the others ten thousand times.

    Its feature is as much smaller, so it counts like any other, but 8 bits per channel hold nothing
    besides that row. Every other layer quantizes well.
    """
    rng = np.random.default_rng(4)
    x, labels = waves(600, seed=7)
    l1 = rng.normal(0, 0.4, (LENGTH, 512)).astype(np.float32)
    l2 = rng.normal(0, 0.05, (512, 32)).astype(np.float32)
    l3 = rng.normal(0, 0.2, (32, 1024)).astype(np.float32)
    features = np.maximum(0, np.maximum(0, np.maximum(0, x @ l1) @ l2) @ l3)
    gram = features.T @ features + 10 * np.eye(1024)
    l4 = np.linalg.solve(gram, features.T @ np.eye(CLASSES)[labels]).astype(np.float32) * 6
    l1[:, 0] *= 1e-4
    l2[0] *= 1e4
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], name="l1"),
        helper.make_node("Relu", ["m1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], name="l2"),
        helper.make_node("Relu", ["m2"], ["r2"]),
        helper.make_node("MatMul", ["r2", "w3"], ["m3"], name="l3"),
        helper.make_node("Relu", ["m3"], ["r3"]),
        helper.make_node("MatMul", ["r3", "w4"], ["z"], name="l4"),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    weights = {"w1": l1, "w2": l2, "w3": l3, "w4": l4}
    return model(nodes, [numpy_helper.from_array(array, name) for name, array in weights.items()])


def adder() -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """Is the sum above average? All weights alike: every pair of products passes 16 bits.

    Returns the model with 900 samples and labels. A processor that saturates answers "no" always.
    """
    rng = np.random.default_rng(5)
    x = np.clip(rng.normal(0.8, 0.1, (900, LENGTH)), 0, 1).astype(np.float32)
    level = float(np.median(x.sum(axis=1)))
    keep = np.abs(x.sum(axis=1) - level) > 0.1  # farther from the level than 8 bits can blur
    x, labels = x[keep], (x[keep].sum(axis=1) > level).astype(np.int64)
    weights = {
        "w": np.ones((LENGTH, 512), np.float32),  # so wide that int8 is the smaller one
        "b": np.full(512, -level, np.float32),
        "mean": np.stack([-np.ones(512), np.ones(512)], axis=1).astype(np.float32) / 64,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["s"], name="sum"),
        helper.make_node("MatMul", ["s", "mean"], ["z"], name="mean"),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return model(nodes, tensors, outputs=("batch", 2)), x, labels


def save(made: onnx.ModelProto, path: Path) -> Path:
    """Write a model."""
    onnx.save(made, path)
    return path


def save_data(path: Path, n: int = 900, seed: int = 0) -> Path:
    """Write waves with labels."""
    x, labels = waves(n, seed)
    np.savez(path, x=x, labels=labels)
    return path
