"""Make a graph quantizable without changing what it computes.

Each repair answers a failure seen with real models: old opsets lack the per-channel attribute,
weights hidden in Constant nodes are silently skipped by quantizers, and a Gemm bias of shape (1, N)
crashes one. The variant is compared with the untouched original later, so a repair that changed
results would be caught by the quality gate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import numpy_helper, version_converter

from edgekit.build.candidates import Structure
from edgekit.build.steps import fold
from edgekit.build.steps.structure import name_nodes, structure_of
from edgekit.contracts.contract import InputSpec

VERSION = 3
OPSET = 17
_IR_VERSION_MIN = 4  # below, every initializer must also be an input: folding would break them


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Silence the libraries' advice on stderr, which is ours to speak on."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def normalise(
    source: Path, target: Path, scratch: Path, folded: Sequence[InputSpec] = ()
) -> tuple[list[str], Structure]:
    """Write the normalised form of ``source`` to ``target``; returns what was done, as sentences.

    ``folded`` are the inputs whose preprocessing becomes part of the graph.

    A model that is quantized already is left as it is: repairs would tear its Q/DQ pairs apart. A
    repair that is not possible for this model is left out and said: the candidates that depend on
    it then fail by themselves and are dropped with their error.
    """
    notes: list[str] = []
    model = onnx.load(source)
    before = structure_of(model)
    if before.quantized:
        onnx.save(model, target)
        return ["the model is quantized already: it is passed through unchanged"], before
    model = _upgrade(model, notes)
    if steps := fold.fold(model, folded):
        notes.append(f"the graph does the declared preprocessing (steps: {steps})")
    if constants := _fold_constants(model):
        notes.append(f"{constants} Constant nodes became initializers")
    model = _infer_shapes(model, notes)
    plain = scratch / "plain.onnx"
    onnx.save(model, plain)
    try:
        # Imported late: it takes a third of a second, which a rebuild that only looks up has not.
        from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

        with quiet_logs():
            # Symbolic shape inference needs a package that onnxruntime does not declare, and fails
            # on most models with dynamic shapes; what it adds is not needed for static ranges.
            quant_pre_process(str(plain), str(target), skip_symbolic_shape=True)
        onnx.checker.check_model(onnx.load(target))
        notes.append("constants folded and batch normalisation fused by ONNX Runtime")
    except Exception as exc:  # noqa: BLE001 - foreign code raises anything; the model is whole without it
        notes.append(f"left without ONNX Runtime's pre-processing: {type(exc).__name__}: {exc}")
        plain.replace(target)
    model = onnx.load(target)
    squeezed = _squeeze_gemm_bias(model)  # after the fusions, which make such Gemms
    if squeezed:
        notes.append(f"{squeezed} Gemm biases of shape (1, N) became (N)")
    name_nodes(model)
    onnx.save(model, target)
    return notes, structure_of(model)


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _upgrade(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    before = _opset(model)
    model.ir_version = max(model.ir_version, _IR_VERSION_MIN)
    if before >= OPSET:
        return model
    try:
        converted = version_converter.convert_version(model, OPSET)
        onnx.checker.check_model(converted)
    except Exception as exc:  # noqa: BLE001 - the converter raises RuntimeError and its own kinds
        notes.append(f"opset {before} kept, it cannot be upgraded: {str(exc).splitlines()[0]}")
        return model
    notes.append(f"opset {before} upgraded to {OPSET}")
    return converted


def _fold_constants(model: onnx.ModelProto) -> int:
    graph, folded = model.graph, 0
    outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        if node.op_type != "Constant" or node.output[0] in outputs:
            continue
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if value is None:
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)
        folded += 1
    return folded


def _squeeze_gemm_bias(model: onnx.ModelProto) -> int:
    graph, squeezed = model.graph, 0
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3:
            continue
        bias = weights.get(node.input[2])
        if bias is None or len(bias.dims) != 2 or bias.dims[0] != 1:
            continue
        # A new initializer: another node may use the old one in its present shape.
        flat = numpy_helper.from_array(
            numpy_helper.to_array(bias).reshape(-1), f"{bias.name}_flat{squeezed}"
        )
        graph.initializer.append(flat)
        node.input[2] = flat.name
        squeezed += 1
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    if squeezed:
        for name, tensor in weights.items():
            if name not in used and len(tensor.dims) == 2 and tensor.dims[0] == 1:
                graph.initializer.remove(tensor)
    return squeezed


def _infer_shapes(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception as exc:  # noqa: BLE001 - InferenceError is not exported by every onnx version
        notes.append(f"shapes are not inferred: {str(exc).splitlines()[0]}")
        return model
