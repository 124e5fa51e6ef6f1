"""ONNX Runtime static quantization to QDQ, as a process: ``python -m … REQUEST.json``.

A process of its own, because quantizers crash, exhaust memory and write to stderr; none of that
may reach the build. The answer is one JSON line on stdout: ``{"error": null | "…"}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from edgekit import preprocess
from edgekit.build.candidates import Candidate, Ops
from edgekit.build.steps.normalise import quiet_logs
from edgekit.build.target import Activations
from edgekit.contracts import codec
from edgekit.contracts.contract import Contract
from edgekit.registry import npz

VERSION = 1
_WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CHUNK = 16  # samples per calibration run: fewer is slow, more costs memory


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to quantize, how, and where to."""

    model: str
    target: str
    data: str  # calibration data in the registry's canonical form
    contract: Contract
    candidate: Candidate


class NothingToQuantizeError(Exception):
    """The graph has no operator this candidate is about."""


class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
    """Streams preprocessed samples from a memory-mapped data set."""

    def __init__(self, data: Path, contract: Contract) -> None:
        self._feeds = self._read(npz.open_mapped(data), contract)

    @staticmethod
    def _read(
        arrays: dict[str, npt.NDArray[Any]], contract: Contract
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        first = contract.inputs[0].shape[0]
        size = first if isinstance(first, int) else _CHUNK
        total = len(arrays[contract.inputs[0].name])
        for start in range(0, total, size):
            rows = np.arange(start, start + size)
            # A fixed batch is filled up from the front; a dynamic one is just shorter.
            rows = rows % total if isinstance(first, int) else rows[rows < total]
            yield {
                spec.name: preprocess.apply(spec.preprocess, arrays[spec.name][rows])
                for spec in contract.inputs
            }

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next feed, None at the end."""
        return next(self._feeds, None)


def weight_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that multiply by constant weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _WEIGHT_OPS and len(node.input) > 1 and node.input[1] in weights
    ]


def _name_nodes(path: Path) -> onnx.ModelProto:
    """Nodes are selected by name, and names are optional in ONNX: give each a unique one."""
    model = onnx.load(path)
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)
    return model


def quantize(request: Request) -> None:
    """Write the quantized model.

    Raises:
        NothingToQuantizeError: no operator to quantize.
        Exception: whatever the quantizer raises.
    """
    candidate = request.candidate
    model = _name_nodes(Path(request.model))
    nodes = weight_nodes(model)
    if not nodes:
        raise NothingToQuantizeError(
            "no Conv, ConvTranspose, MatMul or Gemm with constant weights in the graph"
        )
    signed = candidate.activations is Activations.S8
    with quiet_logs():
        quantize_static(
            model,
            request.target,
            Reader(Path(request.data), request.contract),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(_WEIGHT_OPS) if candidate.ops is Ops.WEIGHTS else None,
            nodes_to_quantize=nodes if candidate.ops is Ops.WEIGHTS else None,
            per_channel=candidate.per_channel,
            reduce_range=candidate.reduce_range,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def main(path: str) -> None:
    """Run the request at ``path``; the exit status is 0 when the answer line tells the outcome."""
    request = codec.read(Request, Path(path))
    error: str | None = None
    try:
        quantize(request)
    except (MemoryError, OSError):
        raise  # not a property of the candidate: the process ends with it, and nothing is cached
    except Exception as exc:  # noqa: BLE001 - foreign code; the exact error is the answer
        error = " ".join(f"{type(exc).__name__}: {exc}".split())
    sys.stdout.write(json.dumps({"error": error}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
