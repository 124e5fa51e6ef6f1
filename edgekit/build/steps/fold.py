"""Declared preprocessing as part of the graph: what a device would do before, the engine does.

The same float32 arithmetic in the same order as `edgekit.preprocess`, so answers do not change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from typing_extensions import assert_never

from edgekit.contracts.contract import InputSpec, Normalise, PreprocessStep, Transpose
from edgekit.contracts.errors import BadInputError


def fold(model: onnx.ModelProto, inputs: Iterable[InputSpec]) -> int:
    """Let ``model`` take its inputs as they are declared, and prepare them itself.

    Args:
        model: changed in place. It takes what preprocessing of ``inputs`` gives.
        inputs: of the contract, which the graph fits.

    Returns:
        The number of steps that are nodes now.

    Raises:
        BadInputError: an input is an output as it came, so that it cannot be another.
    """
    count = 0
    for spec in inputs:
        if spec.preprocess:
            _fold_input(model.graph, spec)
            count += len(spec.preprocess)
    return count


def _fold_input(graph: onnx.GraphProto, spec: InputSpec) -> None:
    if any(value.name == spec.name for value in graph.output):
        raise BadInputError(
            f"{spec.name!r} is input and output of the graph: its preprocessing cannot be folded",
            hint="build without --fold-preprocessing",
        )
    taken = next(value for value in graph.input if value.name == spec.name)
    prepared = f"{spec.name}/prepared"
    _rename(graph, spec.name, prepared)
    declared = helper.make_tensor_value_info(
        spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
    )
    taken.CopyFrom(declared)
    nodes: list[onnx.NodeProto] = []
    last = spec.name
    for index, step in enumerate(spec.preprocess):
        made = _nodes(step, last, f"{spec.name}/{index}", len(spec.shape), graph)
        nodes += made
        last = made[-1].output[0]
    nodes[-1].output[0] = prepared
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _nodes(
    step: PreprocessStep, source: str, name: str, rank: int, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    if isinstance(step, Transpose):
        return [helper.make_node("Transpose", [source], [name], name=name, perm=step.order)]
    if not isinstance(step, Normalise):
        assert_never(step)
    shape = [1] * rank
    if len(step.mean) > 1:
        shape[step.axis] = len(step.mean)
    constants = []
    for what, values in (("mean", step.mean), ("std", step.std)):
        array = np.asarray(values, dtype=np.float32).reshape(shape)
        constants.append(numpy_helper.from_array(array, f"{name}/{what}"))
    graph.initializer.extend(constants)
    mean, std = (tensor.name for tensor in constants)
    parts: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("Cast", [source], {"to": TensorProto.FLOAT}),
        ("Sub", [f"{name}/Cast", mean], {}),
        ("Div", [f"{name}/Sub", std], {}),
    )
    return [
        helper.make_node(op, reads, [f"{name}/{op}"], name=f"{name}/{op}", **attributes)
        for op, reads, attributes in parts
    ]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every reader of ``old``, in the bodies of If, Loop and Scan, too, unless it means another."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                own = {value.name for value in body.input}
                if old not in own:
                    _rename(body, old, new)
