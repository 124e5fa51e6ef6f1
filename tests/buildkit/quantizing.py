"""Run models and quantize them in this process, the way the build does in others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edgekit.build.candidates import Candidate, Ops, Scheme
from edgekit.build.quantizers import calibrate, worker
from edgekit.build.ranges import Ranges
from edgekit.build.steps.normalise import normalise
from edgekit.build.target import Activations
from edgekit.contracts.contract import Contract
from edgekit.registry import graph, infer


def session(
    model: str | Path | onnx.ModelProto, *, plain: bool = False
) -> onnxruntime.InferenceSession:
    """A session at the level the device uses, or one that runs the graph as it is written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_DISABLE_ALL if plain else levels.ORT_ENABLE_EXTENDED
    )
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: str | Path | onnx.ModelProto, x: np.ndarray, *, plain: bool = False) -> np.ndarray:
    """The first output."""
    return session(model, plain=plain).run(None, {"x": x})[0]


def contract_of(model: onnx.ModelProto) -> Contract:
    return infer.contract_of(graph.facts(model, "m"), None).contract


def ranges_of(model: onnx.ModelProto, x: np.ndarray) -> Ranges:
    """Calibrate on ``x``."""
    return calibrate.calibrate(model, {"x": x}, contract_of(model))


def normalised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The form the quantizers get."""
    onnx.save(model, folder / "source.onnx")
    normalise(folder / "source.onnx", folder / "normalised.onnx", folder)
    return onnx.load(folder / "normalised.onnx")


def static(ops: Ops = Ops.WEIGHTS, activations: Activations = Activations.U8, **more) -> Candidate:
    """A static candidate."""
    return Candidate(
        name="c",
        precision="int8",
        scheme=more.pop("scheme", Scheme.STATIC),
        ops=ops,
        activations=activations,
        **more,
    )


def quantize(
    model: onnx.ModelProto, candidate: Candidate, x: np.ndarray | None = None
) -> onnx.ModelProto:
    """What the worker would write."""
    ranges = ranges_of(model, x) if x is not None else None
    return worker.quantize(model, candidate, ranges)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
