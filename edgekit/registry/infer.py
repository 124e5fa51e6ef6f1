"""Contract from graph: derive what can be derived, say each guess, refuse contradictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts.contract import (
    Contract,
    InputSpec,
    Normalise,
    OutputSpec,
    QualityBudget,
    Task,
    Transpose,
    validate,
)
from edgekit.contracts.errors import BadInputError
from edgekit.registry.graph import Dim, Graph, Tensor
from edgekit.stats.metrics import Truth, metric_of

DROP_MAX = 0.02  # two points of top-1 or agreement, 0.02 of cosine
_HINT = "correct the contract, or leave --contract away to have it derived"


@dataclass(frozen=True)
class Inferred:
    """A contract and, as sentences, what was assumed to get it."""

    contract: Contract
    assumptions: tuple[str, ...]


def scored_output(contract: Contract) -> OutputSpec:
    """The output that the quality metric looks at: the first classification, else the first."""
    for spec in contract.outputs:
        if spec.task is Task.CLASSIFICATION:
            return spec
    return contract.outputs[0]


def contract_of(
    graph: Graph, labels: npt.NDArray[Any] | None, *, drop_max: float | None = None
) -> Inferred:
    """Derive the contract of a graph.

    Args:
        graph: facts of the graph.
        labels: labels of the data set given with it, if any.
        drop_max: quality budget; None takes the default.

    Raises:
        BadInputError: an input without declared shape, or a graph no contract can describe.
    """
    notes: list[str] = []
    inputs = tuple(_input(tensor) for tensor in graph.inputs)
    outputs = tuple(_output(tensor, graph, labels, notes) for tensor in graph.outputs)
    classified = any(spec.task is Task.CLASSIFICATION for spec in outputs)
    if classified and labels is not None:
        metric, why = "top1", "the data has labels"
    elif classified:
        metric, why = "agreement", "a classifier without labels is compared with the original"
    else:
        metric, why = "cosine", "no output is a classification"
        if labels is not None:
            notes.append("labels are not used: no output has the shape [batch, classes]")
    limit = DROP_MAX if drop_max is None else drop_max
    notes.append(f"quality metric {metric}: {why}")
    if drop_max is None:
        notes.append(f"quality may drop by at most {limit} {metric}, with 95 % confidence")
    quality = QualityBudget(metric=metric, drop_max=limit)
    contract = validate(Contract(inputs=inputs, outputs=outputs, quality=quality))
    return Inferred(contract, tuple(notes))


def _input(tensor: Tensor) -> InputSpec:
    if tensor.shape is None:
        raise BadInputError(
            f"input {tensor.name!r} has no declared shape", hint="export the model with shapes"
        )
    return InputSpec(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)


def _output(
    tensor: Tensor, graph: Graph, labels: npt.NDArray[Any] | None, notes: list[str]
) -> OutputSpec:
    shape = tensor.shape or ()
    classes = shape[1] if len(shape) == 2 else None
    floats = tensor.dtype.startswith("float")
    several = floats and isinstance(classes, int) and classes >= 2
    fits = labels is not None and several and _are_classes(labels, classes)
    if several and (tensor.name in graph.softmax_outputs or fits):
        why = "it ends in a softmax" if tensor.name in graph.softmax_outputs else "labels are given"
        notes.append(f"output {tensor.name!r} is a classification over {classes} classes: {why}")
        task = Task.CLASSIFICATION
    else:
        task = Task.OTHER
    return OutputSpec(name=tensor.name, dtype=tensor.dtype, shape=shape, task=task)


def _are_classes(labels: npt.NDArray[Any], classes: Dim | None) -> bool:
    if labels.ndim != 1 or not labels.size or not isinstance(classes, int):
        return False
    whole = np.issubdtype(labels.dtype, np.integer)
    return whole and int(labels.min()) >= 0 and int(labels.max()) < classes


def check_against_graph(contract: Contract, graph: Graph) -> Contract:
    """Return ``contract`` when the graph can honour it.

    Raises:
        BadInputError: names each field that contradicts the graph, or an unknown metric.
    """
    validate(contract)
    problems = _names("inputs", [s.name for s in contract.inputs], graph.inputs)
    problems += _names("outputs", [s.name for s in contract.outputs], graph.outputs)
    if not problems:
        tensors = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}
        for spec in contract.inputs:
            problems += _input_problems(spec, tensors[spec.name])
        for out in contract.outputs:
            problems += _problems(f"outputs.{out.name}", out.dtype, out.shape, tensors[out.name])
            problems += _label_problems(out)
    if problems:
        raise BadInputError(f"contract contradicts the graph: {'; '.join(problems)}", hint=_HINT)
    metric = metric_of(contract.quality.metric)
    classes = metric.truth is Truth.CLASSES or metric.name == "agreement"
    if classes and metric.name != "exact_match" and len(scored_output(contract).shape) < 2:
        raise BadInputError(
            f"contract: quality.metric: {metric.name} needs an output of shape [batch, classes]",
            hint="use cosine for other outputs",
        )
    return contract


def _names(field: str, wanted: list[str], tensors: tuple[Tensor, ...]) -> list[str]:
    have = [tensor.name for tensor in tensors]
    return [
        *(f"{field}.{name} is not in the graph" for name in wanted if name not in have),
        *(f"{field}.{name} is in the graph only" for name in have if name not in wanted),
    ]


def _input_problems(spec: InputSpec, tensor: Tensor) -> list[str]:
    """Compare what preprocessing makes of the declared input with what the graph takes."""
    dtype, shape = spec.dtype, spec.shape
    for step in spec.preprocess:
        if isinstance(step, Normalise):
            dtype = "float32"
        elif isinstance(step, Transpose):
            if sorted(step.order) != list(range(len(shape))):
                return [f"inputs.{spec.name}.preprocess: order {step.order} for {len(shape)} axes"]
            shape = tuple(shape[axis] for axis in step.order)
    return _problems(f"inputs.{spec.name}", dtype, shape, tensor)


def _problems(field: str, dtype: str, shape: tuple[Dim, ...], tensor: Tensor) -> list[str]:
    if dtype != tensor.dtype:
        return [f"{field}.dtype is {dtype}, the graph's is {tensor.dtype}"]
    if tensor.shape is None:
        return []
    if len(shape) != len(tensor.shape):
        return [f"{field}.shape has {len(shape)} dimensions, the graph's has {len(tensor.shape)}"]
    return [
        f"{field}.shape[{axis}] is {mine}, the graph's is {theirs}"
        for axis, (mine, theirs) in enumerate(zip(shape, tensor.shape, strict=True))
        if isinstance(theirs, int) and mine != theirs
    ]


def _label_problems(spec: OutputSpec) -> list[str]:
    classes = spec.shape[-1] if spec.shape else None
    if spec.labels and isinstance(classes, int) and len(spec.labels) != classes:
        return [f"outputs.{spec.name}.labels has {len(spec.labels)} names for {classes} classes"]
    return []
