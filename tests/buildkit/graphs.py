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
        helper.make_node("Gemm", ["f", "head", "bias"], ["z" if softmax else "y"]),
    ]
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
    outputs: tuple[int | str, ...] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model from ``x`` [batch, LENGTH] to ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, LENGTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs or [batch, CLASSES])],
        tensors,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def relu() -> onnx.ModelProto:
    """A model without weights: nothing to quantize by weight."""
    return model([helper.make_node("Relu", ["x"], ["y"])], [], outputs=("batch", LENGTH))


def save(made: onnx.ModelProto, path: Path) -> Path:
    """Write a model."""
    onnx.save(made, path)
    return path


def save_data(path: Path, n: int = 900, seed: int = 0) -> Path:
    """Write waves with labels."""
    x, labels = waves(n, seed)
    np.savez(path, x=x, labels=labels)
    return path
