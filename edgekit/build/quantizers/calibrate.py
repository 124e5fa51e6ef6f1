"""Streaming calibration, as a process: ``python -m … REQUEST.json``.

Two passes over the data, peak memory independent of the number of samples. The first reduces each
tensor to its extremes inside the graph, so that the engine frees activations as it goes. The second
counts histograms over those extremes, a group of tensors at a time, bounded in bytes; where
activations are large it counts fewer samples, spread evenly: a histogram needs no more. The answer
is a file; one JSON line on stdout says ``{"error": null | "…"}``.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from edgekit import preprocess
from edgekit.build import ranges as rules
from edgekit.build.candidates import CONVOLUTIONS, WEIGHT_OPS
from edgekit.build.quantizers.base import QUANTIZABLE_OPS
from edgekit.build.ranges import Range, Ranges
from edgekit.build.steps.structure import layers
from edgekit.contracts import codec
from edgekit.contracts.contract import Contract
from edgekit.registry import npz

GROUP_BYTES_MAX = 64 << 20  # activations held at once: too low means many passes over the data
_GROUP_SHARE = 0.15  # of what is resident after the first sample: a small model stays small
COUNTED_BYTES_MAX = 8 << 30  # activations counted in all: about 2 s per GB
CHUNK_MAX = 16  # samples per run: fewer is slow on small models, more costs memory
_LOG_FATAL = 4
_OPSET_AXES_ARE_INPUT = 18  # of reductions

Array = npt.NDArray[Any]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to calibrate, on which data, and where the ranges go."""

    model: str
    data: str  # calibration data in the registry's canonical form
    contract: Contract
    target: str


def feeds(
    arrays: Mapping[str, Array], contract: Contract, chunk: int
) -> Iterator[dict[str, Array]]:
    """Preprocessed samples, ``chunk`` at a time unless the model fixes its batch."""
    first = contract.inputs[0].shape[0]
    size = first if isinstance(first, int) else chunk
    total = len(arrays[contract.inputs[0].name])
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        # A fixed batch is filled up from the front; a dynamic one is just shorter.
        rows = rows % total if isinstance(first, int) else rows[rows < total]
        yield {
            spec.name: preprocess.apply(spec.preprocess, arrays[spec.name][rows])
            for spec in contract.inputs
        }
        npz.release(arrays)


def plain_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session that runs the graph as it is written.

    Raises:
        Exception: whatever ONNX Runtime raises.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    # Fusions would remove the very tensors that are to be seen.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    # It grows by powers of two and gives nothing back; outputs that are kept tear holes into it.
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def showing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """``model`` with ``names`` for outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return shown


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """The float tensors a quantizer may ask about, in graph order; the engine knows their types."""
    constant = {tensor.name for tensor in model.graph.initializer}
    seen: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZABLE_OPS:
            seen |= dict.fromkeys(n for n in (*node.input, *node.output) if n and n not in constant)
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    found = [name for name in seen if inputs.get(name) == onnx.TensorProto.FLOAT]
    made = [name for name in seen if name not in inputs]
    if made:
        outputs = plain_session(showing(model, made)).get_outputs()
        found += [entry.name for entry in outputs if entry.type == "tensor(float)"]
    return found


class _Extremes:
    """The model with two scalars per tensor, and its size, instead of its outputs.

    Where a weight layer reads, two vectors with the extremes of each channel follow.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        self._names = names
        self._graph = showing(model, [])
        self._opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        for index, name in enumerate(names):
            self._show("ReduceMin", [name], f"min_{index}", keepdims=0)
            self._show("ReduceMax", [name], f"max_{index}", keepdims=0)
            self._show("Size", [name], f"size_{index}")
        self._channels = [name for name in _channels(model) if name in set(names)]
        for index, name in enumerate(self._channels):
            self._show_channels(index, name, _channels(model)[name])
        self._session = plain_session(self._graph)

    def run(self, feed: Mapping[str, Array]) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
        """Extremes, shape (tensors, 2), sizes in elements, shape (tensors,), and by channel."""
        found = self._session.run(None, dict(feed))
        scalars, vectors = found[: 3 * len(self._names)], iter(found[3 * len(self._names) :])
        table = np.asarray([float(value) for value in scalars]).reshape(len(self._names), 3)
        channels = dict(zip(self._channels, zip(vectors, vectors, strict=True), strict=True))
        return table[:, :2], table[:, 2], channels

    def _show(self, op: str, inputs: list[str], made: str, **options: Any) -> None:
        self._add(op, inputs, made, **options)
        self._graph.graph.output.append(onnx.ValueInfoProto(name=f"edgekit_{made}"))

    def _add(self, op: str, inputs: list[str], made: str, **options: Any) -> str:
        node = helper.make_node(op, inputs, [f"edgekit_{made}"], **options)
        self._graph.graph.node.append(node)
        return f"edgekit_{made}"

    def _constant(self, values: Sequence[int], made: str) -> str:
        name = f"edgekit_{made}"
        tensor = numpy_helper.from_array(np.asarray(values, np.int64), name)
        self._graph.graph.initializer.append(tensor)
        return name

    def _show_channels(self, index: int, name: str, shape: _Channels) -> None:
        """Of convolutions channels come second, else last: there the other axes become one."""
        axes = [0, *range(2, shape.rank)]
        if shape.last is not None:
            flat = self._constant([-1, shape.last], f"flat_shape_{index}")
            name, axes = self._add("Reshape", [name, flat], f"flat_{index}"), [0]
        for op, made in (("ReduceMin", f"low_{index}"), ("ReduceMax", f"high_{index}")):
            if self._opset >= _OPSET_AXES_ARE_INPUT:
                inputs = [name, self._constant(axes, f"axes_{made}")]
                self._show(op, inputs, made, keepdims=0)
            else:
                self._show(op, [name], made, keepdims=0, axes=axes)


class _Channels(NamedTuple):
    """How the channels lie that a weight layer reads: ``last`` counts those of the last axis."""

    rank: int
    last: int | None


def _channels(model: onnx.ModelProto) -> dict[str, _Channels]:
    """Tensors that feed a weight layer, and where their channels are."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: dict[str, _Channels] = {}
    for node in model.graph.node:
        dims = weights.get(node.input[1]) if len(node.input) > 1 else None
        turned = {a.name for a in node.attribute if a.name in {"transA", "transB"} and a.i}
        if dims is None or node.op_type not in WEIGHT_OPS or "transA" in turned:
            continue
        if node.op_type in CONVOLUTIONS:
            found[node.input[0]] = _Channels(len(dims), None)
        else:
            found[node.input[0]] = _Channels(2, dims[-1] if turned or len(dims) == 1 else dims[-2])
    return found


def _resident_bytes() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return math.inf  # another system: the bound alone counts
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _groups(
    names: Sequence[str], sizes: Mapping[str, float], bytes_max: float
) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0.0
    for name in names:
        if group and held + sizes[name] > bytes_max:
            yield group
            group, held = [], 0.0
        group.append(name)
        held += sizes[name]
    if group:
        yield group


def _count(
    model: onnx.ModelProto,
    group: Sequence[str],
    peaks: Mapping[str, float],
    data: Iterator[dict[str, Array]],
) -> dict[str, Array]:
    """Histograms of a group of tensors; one that is always zero has none."""
    given = {value.name for value in model.graph.input}
    made = [name for name in group if name not in given]
    session = plain_session(showing(model, made)) if made else None
    counts = {name: np.zeros(rules.BINS, np.int64) for name in group if peaks[name] > 0}
    for feed in data:
        values = dict(zip(made, session.run(None, feed), strict=True)) if session else {}
        values |= {name: feed[name] for name in group if name in given}
        for name in counts:
            counts[name] += rules.count(values[name], peaks[name])
    return counts


def calibrate(model: onnx.ModelProto, arrays: Mapping[str, Array], contract: Contract) -> Ranges:
    """Ranges of every float tensor of ``model`` over the samples in ``arrays``.

    Raises:
        ValueError: a tensor is not finite on this data; names it.
        Exception: whatever the engine raises.
    """
    names = float_tensors(model)
    total = len(arrays[contract.inputs[0].name])
    if not names:
        return Ranges(total, {})
    extremes = _Extremes(model, names)
    first = next(feeds(arrays, contract, 1))
    sizes = 4.0 * extremes.run(first)[1] / len(first[contract.inputs[0].name])
    # As many samples as fit together with *all* their tensors: more would multiply the passes.
    group_bytes = min(GROUP_BYTES_MAX, _GROUP_SHARE * _resident_bytes())
    chunk = int(np.clip(group_bytes // max(1.0, float(sizes.sum())), 1, CHUNK_MAX))
    table = np.asarray([[np.inf, -np.inf]] * len(names))
    channels: dict[str, tuple[Array, Array]] = {}
    for feed in feeds(arrays, contract, chunk):
        found, _, vectors = extremes.run(feed)
        table[:, 0] = np.minimum(table[:, 0], found[:, 0])
        table[:, 1] = np.maximum(table[:, 1], found[:, 1])
        for name, (low, high) in vectors.items():
            before = channels.get(name, (low, high))
            channels[name] = np.minimum(before[0], low), np.maximum(before[1], high)
    wild = [name for name, row in zip(names, table, strict=True) if not np.isfinite(row).all()]
    if wild:
        raise ValueError(f"tensor {wild[0]!r} is not finite on the calibration data")
    peaks = {name: float(np.abs(row).max()) for name, row in zip(names, table, strict=True)}
    held = {name: float(size) * chunk for name, size in zip(names, sizes, strict=True)}
    bounds = {name: (float(row[0]), float(row[1])) for name, row in zip(names, table, strict=True)}
    step = math.ceil(float(sizes.sum()) * total / COUNTED_BYTES_MAX)
    named = {layer.name for layer in layers(model)}
    fed = {node.input[0] for node in model.graph.node if node.name in named}
    tensors: dict[str, Range] = {}
    for group in _groups(names, held, group_bytes):
        data = islice(feeds(arrays, contract, chunk), 0, None, step)
        counts = _count(model, group, peaks, data)
        for name in group:
            made = rules.bounds_of(*bounds[name], counts.get(name), channels.get(name))
            if name in fed and name in counts:
                made = msgspec.structs.replace(made, histogram=rules.coarse(counts[name]))
            tensors[name] = made
    return Ranges(total, tensors)


def main(path: str) -> None:
    """Run the request at ``path``; the exit status is 0 when the answer line tells the outcome."""
    request = codec.read(Request, Path(path))
    error: str | None = None
    try:
        arrays = npz.open_mapped(Path(request.data))
        found = calibrate(onnx.load(request.model), arrays, request.contract)
        Path(request.target).write_bytes(codec.encode(found))
    except (MemoryError, OSError):
        raise  # not a property of the model: the process ends with it, and nothing is cached
    except Exception as exc:  # noqa: BLE001 - foreign code; the exact error is the answer
        error = " ".join(f"{type(exc).__name__}: {exc}".split())
    print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
