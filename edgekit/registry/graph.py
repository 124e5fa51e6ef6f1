"""What an ONNX file says about itself, and whether it can be registered at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.limits import MODEL_BYTES_MAX

Dim = int | str
_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    }
)
_MULTIPLY = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})


@dataclass(frozen=True)
class Tensor:
    """One graph input or output. ``shape`` is None when the graph does not say."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True)
class Graph:
    """The facts that contracts are derived from and checked against."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    softmax_outputs: frozenset[str]
    opset: int


def load(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        BadInputError: missing, not ONNX, invalid, over 2 GB, weights in other files, operators of
            unknown domains, or NaN among the weights.
    """
    with translate_os_errors("read", path):
        if path.is_dir():
            raise BadInputError(f"{path}: is a folder, not an ONNX file")
        if path.stat().st_size >= MODEL_BYTES_MAX:
            raise BadInputError(
                f"{path}: larger than the 2 GB an ONNX file can have",
                hint="quantize or split the model before registering it",
            )
        raw = path.read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except DecodeError as exc:
        raise _not_onnx(path) from exc
    # Protobuf reads many byte strings, the empty one among them, as a model without content.
    if not model.ir_version or not model.graph.node or not model.graph.output:
        raise _not_onnx(path)
    _check_domains(model, path)
    _check_weights(model, path)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as exc:
        first = str(exc).strip().splitlines()[0]
        raise BadInputError(
            f"{path}: the ONNX checker refuses it: {first}", hint="export the model again"
        ) from exc
    return model


def _not_onnx(path: Path) -> BadInputError:
    return BadInputError(
        f"{path}: not an ONNX file", hint="export the model to ONNX (torch.onnx.export, skl2onnx…)"
    )


def _check_domains(model: onnx.ModelProto, path: Path) -> None:
    used = {node.domain for node in model.graph.node}
    for function in model.functions:
        used |= {node.domain for node in function.node}
        used.discard(function.domain)
    unknown = sorted(used - _DOMAINS)
    if not unknown:
        return
    hint = "replace these operators by standard ONNX ones: devices could not load the model"
    if "com.microsoft.nchwc" in unknown:
        hint = "it was optimised for one CPU: save it at ORT_ENABLE_EXTENDED or below"
    raise BadInputError(f"{path}: operators of custom domains: {', '.join(unknown)}", hint=hint)


def _check_weights(model: onnx.ModelProto, path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    multiplied: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Constant":
            held = [item.t for item in node.attribute if item.HasField("t")]
            tensors.update((node.output[0], tensor) for tensor in held)
        if node.op_type in _MULTIPLY:
            multiplied |= set(node.input)
    for name, tensor in tensors.items():
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise BadInputError(
                f"{path}: weight {name!r} lies in another file (external data)",
                hint="save one file: onnx.save(model, path, save_as_external_data=False)",
            )
        if tensor.data_type not in _FLOATS:
            continue
        array = numpy_helper.to_array(tensor)
        # Infinity is how a mask says "never"; a weight it is not.
        found = "NaN" if np.isnan(array).any() else "infinity" if np.isinf(array).any() else None
        if found == "NaN" or (found and name in multiplied):
            raise BadInputError(
                f"{path}: weight {name!r} holds {found}", hint="train or export the model again"
            )


def facts(model: onnx.ModelProto, what: str) -> Graph:
    """Inputs, outputs and opset of a loaded model; shapes inferred where the graph is silent.

    Raises:
        BadInputError: an input or output that is not a tensor of numbers.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = model.graph  # the checker accepted it: declared shapes are all there is
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_tensor(v, what) for v in inferred.input if v.name not in weights)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return Graph(
        inputs=inputs,
        outputs=tuple(_tensor(value, what) for value in inferred.output),
        softmax_outputs=frozenset(
            value.name for value in model.graph.output if makers.get(value.name) in _SOFTMAX
        ),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
    )


def _tensor(value: onnx.ValueInfoProto, what: str) -> Tensor:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise BadInputError(
            f"{what}: {value.name!r} is a {(kind or 'untyped value').removesuffix('_type')}, "
            "not a tensor",
            hint="export with tensors only (skl2onnx: options={'zipmap': False})",
        )
    declared = value.type.tensor_type
    if declared.elem_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        raise BadInputError(
            f"{what}: {value.name!r} is not a tensor of numbers",
            hint="move the handling of strings out of the model",
        )
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type)).name
    if not declared.HasField("shape"):
        return Tensor(value.name, dtype, None)
    dims: list[Dim] = []
    for axis, dim in enumerate(declared.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(int(dim.dim_value))
        elif dim.dim_param:
            dims.append(str(dim.dim_param))
        else:
            dims.append("batch" if axis == 0 else f"{value.name}_dim{axis}")
    return Tensor(value.name, dtype, tuple(dims))
