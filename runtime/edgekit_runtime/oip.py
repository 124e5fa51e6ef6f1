"""Open Inference Protocol v2, JSON form: requests to arrays, results to answers. Pure.

https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from edgekit.contracts import codec
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec
from edgekit.contracts.errors import BadInputError
from edgekit_runtime import guard
from edgekit_runtime.errors import GuardError
from edgekit_runtime.ports import Array
from edgekit_runtime.session import Result

REQUEST_ID_MAX = 256
_DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A request's input."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A request's choice of outputs."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /v2/models/{name}/infer``."""

    inputs: tuple[Tensor, ...]
    id: str | None = None
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: dict[str, Any] = {}


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """Body of the extension ``POST /v2/models/{name}/feedback``: the truth, when it is known."""

    id: str
    label: int | str


def parse_infer(raw: bytes, bytes_max: int) -> tuple[InferRequest, dict[str, Array]]:
    """The request in ``raw`` and its input arrays.

    Raises:
        BadInputError: not a request of this protocol; names the tensor.
    """
    request = codec.decode(InferRequest, raw, what="request", bytes_max=bytes_max)
    if request.id is not None and not 0 < len(request.id) <= REQUEST_ID_MAX:
        raise BadInputError(f"request: id must have 1-{REQUEST_ID_MAX} characters")
    arrays: dict[str, Array] = {}
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise BadInputError(f"input {tensor.name!r}: sent twice")
        arrays[tensor.name] = _array(tensor)
    return request, arrays


def _array(tensor: Tensor) -> Array:
    what = f"input {tensor.name!r}"
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise BadInputError(f"{what}: datatype {tensor.datatype!r} is not one of {known}")
    if any(dim < 0 for dim in tensor.shape):
        raise BadInputError(f"{what}: shape {list(tensor.shape)}")
    try:
        given = np.asarray(tensor.data)
        wanted = np.dtype(dtype)
        fits = given.size == 0 or given.dtype.kind in _FROM[wanted.kind]
        array = given.astype(wanted) if fits else None
    except (ValueError, TypeError, OverflowError) as exc:
        raise BadInputError(f"{what}: data is not a regular array of {tensor.datatype}") from exc
    if array is None or (wanted.kind in "iu" and not np.array_equal(array, given)):
        raise BadInputError(f"{what}: data holds values that are not {tensor.datatype}")
    if array.size != math.prod(tensor.shape):
        raise BadInputError(f"{what}: {array.size} values for shape {list(tensor.shape)}")
    result: Array = array.reshape(tensor.shape)
    return result


# Kinds of JSON numbers that may become a dtype: fractions never turn into integers unnoticed.
_FROM = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}


def answer(model: str, result: Result, request: InferRequest) -> bytes:
    """Body of the answer.

    Raises:
        GuardError: an output was asked for that the model does not have.
    """
    wanted = [output.name for output in request.outputs] or list(result.outputs)
    for name in wanted:
        if name not in result.outputs:
            raise GuardError(f"output {name!r}: the model has {', '.join(result.outputs)}")
    body = {
        "model_name": model,
        "model_version": result.version,
        "parameters": {
            "slot": result.slot,
            "flags": guard.names(result.flags),
            "counted": result.counted,
        },
        "outputs": [_tensor(name, result.outputs[name]) for name in wanted],
    }
    if result.request_id is not None:
        body["id"] = result.request_id
    return msgspec.json.encode(body)


def _tensor(name: str, values: Array) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(values.shape),
        "datatype": _NAMES.get(str(values.dtype), "FP32"),
        "data": values.ravel().tolist(),
    }


def metadata(model: str, versions: tuple[str, ...], platform: str, contract: Contract) -> bytes:
    """Body of ``GET /v2/models/{name}``."""

    def tensor(spec: InputSpec | OutputSpec) -> Mapping[str, Any]:
        shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
        return {"name": spec.name, "datatype": _NAMES.get(spec.dtype, "BYTES"), "shape": shape}

    return msgspec.json.encode(
        {
            "name": model,
            "versions": list(versions),
            "platform": platform,
            "inputs": [tensor(spec) for spec in contract.inputs],
            "outputs": [tensor(spec) for spec in contract.outputs],
        }
    )
