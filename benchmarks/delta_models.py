"""Trains what `delta.py` compares: a network, the same with its last layer fine-tuned, another one.

A multilayer perceptron on ItalyPowerDemand (winter or summer?), trained by gradient descent (Adam)
with cross entropy, in numpy alone. Fine-tuning sees what a meter of another gain reports and moves
the last layer only; a retrain starts from other random weights and sees the same data as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.cli.demo.data import HOURS, Split

Array = npt.NDArray[Any]
WIDTHS = (HOURS, 768, 768, 2)
RATE, DECAY = 1e-3, (0.9, 0.999)


def fresh(seed: int) -> list[Array]:
    """Weights and biases of each layer, as He et al. (2015) begin."""
    rng = np.random.default_rng(seed)
    parts: list[Array] = []
    for wide, narrow in pairwise(WIDTHS):
        parts += [rng.normal(0, np.sqrt(2 / wide), (wide, narrow)), np.zeros(narrow)]
    return parts


def _forward(parts: Sequence[Array], x: Array) -> list[Array]:
    active = [x]
    for at in range(0, len(parts), 2):
        raw = active[-1] @ parts[at] + parts[at + 1]
        active.append(raw if at + 2 == len(parts) else np.maximum(raw, 0))
    return active


def _gradients(parts: Sequence[Array], data: Split) -> list[Array]:
    active = _forward(parts, data.x)
    scores = np.exp(active[-1] - active[-1].max(axis=1, keepdims=True))
    delta = (scores / scores.sum(axis=1, keepdims=True) - np.eye(2)[data.y]) / len(data.y)
    found: list[Array] = []
    for at in range(len(parts) - 2, -2, -2):
        found = [active[at // 2].T @ delta, delta.sum(axis=0), *found]
        delta = (delta @ parts[at].T) * (active[at // 2] > 0)
    return found


def train(parts: Sequence[Array], data: Split, *, epochs: int, last_only: bool) -> list[Array]:
    """Trained copies of ``parts``."""
    parts = [part.copy() for part in parts]
    moments = [(np.zeros_like(part), np.zeros_like(part)) for part in parts]
    first = len(parts) - 2 if last_only else 0
    for epoch in range(1, epochs + 1):
        for at, gradient in enumerate(_gradients(parts, data)):
            if at < first:
                continue
            mean, square = moments[at]
            mean += (1 - DECAY[0]) * (gradient - mean)
            square += (1 - DECAY[1]) * (gradient**2 - square)
            step = np.sqrt(square / (1 - DECAY[1] ** epoch)) + 1e-8
            parts[at] -= RATE * mean / (1 - DECAY[0] ** epoch) / step
    return parts


def accuracy(parts: Sequence[Array], data: Split) -> float:
    """Share of right answers."""
    return float((_forward(parts, data.x)[-1].argmax(axis=1) == data.y).mean())


def save(parts: Sequence[Array], path: Path) -> None:
    """Write the network as ONNX: (batch, 24) to class probabilities."""
    nodes, source, constants = [], "power", {}
    for at in range(0, len(parts), 2):
        names = [f"w{at // 2}", f"b{at // 2}"]
        constants |= dict(zip(names, parts[at : at + 2], strict=True))
        nodes.append(helper.make_node("Gemm", [source, *names], [f"h{at // 2}"]))
        source = f"h{at // 2}"
        if at + 2 < len(parts):
            nodes.append(helper.make_node("Relu", [source], [f"r{at // 2}"]))
            source = f"r{at // 2}"
    nodes.append(helper.make_node("Softmax", [source], ["probability"], axis=1))
    graph = helper.make_graph(
        nodes,
        "meter",
        [helper.make_tensor_value_info("power", TensorProto.FLOAT, ["batch", HOURS])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
