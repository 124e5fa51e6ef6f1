"""ONNX Runtime's QDQ quantizer, with ranges from our own streaming calibration.

Its calibrators keep every activation of every sample (6 GB for 20 images were measured), so only
the graph rewriting is taken from the library. `Explicit` is the form TensorRT accepts: int8 with
zero point 0 everywhere, float bias, Q/DQ before weight layers and not after them, so that it can
fuse what follows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgekit.build import saturation
from edgekit.build.candidates import WEIGHT_OPS, Candidate, Ops, Reduce
from edgekit.build.quantizers.base import QUANTIZABLE_OPS, channel_axis, chosen_layers
from edgekit.build.ranges import Ranges
from edgekit.build.target import Activations

REGISTERED_OPS = frozenset({*QDQRegistry, *QLinearOpsRegistry})


class Static:
    """QDQ for ONNX Runtime: asymmetric activations, bias in int32."""

    def quantize(
        self, model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None
    ) -> onnx.ModelProto:
        """See `edgekit.build.quantizers.base.Quantizer`."""
        return _quantize(model, candidate, ranges, {})


class Explicit:
    """Symmetric QDQ with float bias, for TensorRT."""

    def quantize(
        self, model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None
    ) -> onnx.ModelProto:
        """See `edgekit.build.quantizers.base.Quantizer`."""
        options = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
            "OpTypesToExcludeOutputQuantization": sorted(WEIGHT_OPS),
        }
        return _quantize(model, candidate, ranges, options)


def _quantize(
    model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None, options: dict[str, Any]
) -> onnx.ModelProto:
    assert ranges is not None  # the worker reads them for quantizers that need them
    nodes = chosen_layers(model, candidate)
    everything = candidate.ops is Ops.ALL and not candidate.only
    if candidate.reduce_range is Reduce.WHERE:
        options = {**options, "TensorQuantOverrides": _reduced(model, candidate, ranges)}
    signed = candidate.activations is Activations.S8
    quantizer = QDQQuantizer(
        _with_shapes(model),
        candidate.per_channel,
        candidate.reduce_range is Reduce.ALWAYS,
        QuantType.QInt8,
        QuantType.QInt8 if signed else QuantType.QUInt8,
        _tensors(ranges, candidate),
        [] if everything else nodes,
        list(candidate.floats),
        sorted(QUANTIZABLE_OPS & REGISTERED_OPS) if everything else sorted(WEIGHT_OPS),
        options,
    )
    made: onnx.ModelProto = quantizer.quantize_model()
    return made


def _reduced(model: onnx.ModelProto, candidate: Candidate, ranges: Ranges) -> dict[str, Any]:
    """7 bits for the weights of layers that could saturate."""
    names = set(saturation.layers(model, candidate, ranges))
    dims = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    overrides: dict[str, Any] = {}
    for node in model.graph.node:
        if node.name in names:
            weight = node.input[1]
            channels = candidate.per_channel and dims[weight] > 1
            axis = {"axis": channel_axis(node)} if channels else {}
            overrides[weight] = [{**axis, "quant_type": QuantType.QInt8, "reduce_range": True}]
    return overrides


def _tensors(ranges: Ranges, candidate: Candidate) -> TensorsData:
    bounds = {name: found.by(candidate.calibration) for name, found in ranges.tensors.items()}
    as_arrays = {
        name: (np.asarray(low, np.float32), np.asarray(high, np.float32))
        for name, (low, high) in bounds.items()
    }
    # Whatever rule the bounds come from, to the library they are the extremes.
    return TensorsData(CalibrationMethod.MinMax, as_arrays)


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes are inferred through files, as the library does: in memory, 2 GB are the limit."""
    with tempfile.TemporaryDirectory() as folder:
        plain, inferred = Path(folder) / "plain.onnx", Path(folder) / "inferred.onnx"
        onnx.save(model, plain)
        onnx.shape_inference.infer_shapes_path(str(plain), str(inferred))
        return onnx.load(inferred)
