"""Open Inference Protocol v2: requests to arrays, results to answers. Pure.

https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md) with
the binary tensor data extension of the Triton server (docs/protocol/extension_binary_data.md): the
JSON part comes first, its length in a header of its own, then the tensors' bytes, little-endian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgekit.contracts import codec
from edgekit.contracts.composition import Link
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec
from edgekit.contracts.errors import BadInputError
from edgekit_runtime import guard
from edgekit_runtime.guard import Flags
from edgekit_runtime.ports import Array

REQUEST_ID_MAX = 256
ALL_JSON = -1  # length of the JSON part of a body without binary tensors
BINARY_EXTENSION = "binary_tensor_data"
EXTENSIONS = (BINARY_EXTENSION, "edgekit_contract", "edgekit_feedback", "edgekit_compose")
_DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_DIMS_MAX = 32  # of numpy before version 2
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NAMES_OF = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}  # str(dtype) takes 10 us


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A request's input: ``data``, or ``binary_data_size`` bytes after the JSON part."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any] | None = None
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


class Route(NamedTuple):
    """Where a path of a model leads; ``version`` None: whichever serves."""

    model: str
    version: str | None
    action: str


class Label(NamedTuple):
    """What an answer says about who answered."""

    model: str
    version: str
    slot: str


def route(path: str) -> Route | None:
    """What a path below ``/v2/models/`` asks for; None for every other path."""
    return _usual_route(path) if len(path) <= _USUAL_PATH else _route(path)


def _route(path: str) -> Route | None:
    parts = [part for part in path.split("/") if part]
    if parts[:2] != ["v2", "models"] or len(parts) < 3:
        return None
    name, rest, version = parts[2], parts[3:], None
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    if len(rest) > 1:
        return None
    return Route(name, version, rest[0] if rest else "metadata")


_USUAL_PATH = 256  # paths up to this long are remembered
_usual_route = lru_cache(maxsize=256)(_route)


def parse_infer(
    raw: bytes | bytearray, bytes_max: int, json_length: int = ALL_JSON
) -> tuple[InferRequest, dict[str, Array]]:
    """The request in ``raw`` and its input arrays.

    Args:
        raw: the body.
        bytes_max: a longer body is refused.
        json_length: how much of it is JSON; the tensors' bytes follow.

    Raises:
        BadInputError: not a request of this protocol; names the tensor.
    """
    binary = memoryview(b"")
    if json_length != ALL_JSON:
        if not 0 < json_length <= len(raw):
            raise BadInputError(f"request: JSON part of {json_length} in {len(raw)} bytes")
        binary, raw = memoryview(raw)[json_length:], raw[:json_length]
    request = codec.decode(InferRequest, raw, what="request", bytes_max=bytes_max)
    if request.id is not None and not 0 < len(request.id) <= REQUEST_ID_MAX:
        raise BadInputError(f"request: id must have 1-{REQUEST_ID_MAX} characters")
    arrays: dict[str, Array] = {}
    start = 0
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise BadInputError(f"input {tensor.name!r}: sent twice")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            arrays[tensor.name] = _from_json(tensor)
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary):
            raise BadInputError(f"input {tensor.name!r}: binary_data_size {str(size)[:40]}")
        arrays[tensor.name] = _from_bytes(tensor, binary[start : start + size])
        start += size
    if start != len(binary):
        raise BadInputError(f"request: {len(binary)} bytes of tensors, {start} announced")
    return request, arrays


def _wanted(tensor: Tensor) -> tuple[str, np.dtype[Any]]:
    what = f"input {tensor.name!r}"
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise BadInputError(f"{what}: datatype {tensor.datatype[:40]!r} is not one of {known}")
    if any(dim < 0 for dim in tensor.shape) or len(tensor.shape) > _DIMS_MAX:
        raise BadInputError(f"{what}: shape {list(tensor.shape)[:_DIMS_MAX]}")
    return what, np.dtype(dtype)


def _from_bytes(tensor: Tensor, data: memoryview) -> Array:
    what, wanted = _wanted(tensor)
    if tensor.data is not None:
        raise BadInputError(f"{what}: both data and binary_data_size")
    size = math.prod(tensor.shape) * wanted.itemsize
    if size != len(data):
        raise BadInputError(f"{what}: {len(data)} bytes for shape {list(tensor.shape)}")
    if wanted.kind == "b" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise BadInputError(f"{what}: data holds values that are not BOOL")
    result: Array = np.frombuffer(data, wanted.newbyteorder("<")).reshape(tensor.shape)
    return result


def _from_json(tensor: Tensor) -> Array:
    what, wanted = _wanted(tensor)
    if tensor.data is None:
        raise BadInputError(f"{what}: has neither data nor binary_data_size")
    try:
        given = np.asarray(tensor.data)
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


def check_outputs(request: InferRequest, names: Sequence[str]) -> None:
    """Raises `BadInputError` when an output is asked for that is not one of ``names``."""
    for output in request.outputs:
        if output.name not in names:
            raise BadInputError(
                f"output {output.name[:80]!r} is not one of the model's: {', '.join(names)}"
            )


def answer(
    label: Label,
    outputs: Mapping[str, Array],
    flags: int,
    request: InferRequest,
    *,
    counted: bool,
    sources: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Length of the JSON part (`ALL_JSON` without binary tensors) and the body of the answer."""
    binary = request.parameters.get("binary_data_output") is True
    wanted = {
        output.name: output.parameters.get("binary_data", binary) is True
        for output in request.outputs
    } or dict.fromkeys(outputs, binary)
    tensors: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for name, as_bytes in wanted.items():
        tensors.append(_tensor(name, outputs[name], chunks if as_bytes else None))
    body: dict[str, Any] = {
        "model_name": label.model,
        "model_version": label.version,
        "parameters": {
            "slot": label.slot,
            "flags": guard.names(Flags(flags)) if flags else [],
            "counted": counted,
        },
        "outputs": tensors,
    }
    if sources:  # versions of the models that fed it
        body["parameters"]["sources"] = sources
    if request.id is not None:
        body["id"] = request.id
    raw = msgspec.json.encode(body)
    return (len(raw) if chunks else ALL_JSON), b"".join([raw, *chunks])


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    model_version: str
    outputs: tuple[Tensor, ...]


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    error: str


def ask(
    arrays: Mapping[str, Array], outputs: Sequence[str], request_id: str | None
) -> tuple[int, bytes]:
    """Length of the JSON part and the body of a request, all tensors binary."""
    chunks: list[bytes] = []
    body: dict[str, Any] = {
        "inputs": [_tensor(name, values, chunks) for name, values in arrays.items()],
        "outputs": [{"name": name} for name in outputs],
        "parameters": {"binary_data_output": True},
    }
    if request_id is not None:
        body["id"] = request_id
    raw = msgspec.json.encode(body)
    return len(raw), b"".join([raw, *chunks])


def read_answer(raw: bytes, json_length: int) -> tuple[dict[str, Array], str]:
    """Outputs and version in the answer to `ask`.

    Raises:
        BadInputError: it is none.
    """
    document = raw if json_length == ALL_JSON else raw[:json_length]
    found = codec.decode(_Answer, document, what="answer")
    binary = memoryview(raw)[len(document) :]
    arrays: dict[str, Array] = {}
    for tensor in found.outputs:
        size = tensor.parameters.get("binary_data_size", 0)
        arrays[tensor.name] = _from_bytes(tensor, binary[:size])
        binary = binary[size:]
    return arrays, found.model_version


def read_error(raw: bytes) -> str:
    """The reason in the body of a refusal."""
    try:
        return codec.decode(_Refusal, raw, what="refusal").error
    except BadInputError:
        return "refused without a reason"


def error(message: str) -> bytes:
    """Body of every refusal."""
    return msgspec.json.encode({"error": message})


def _tensor(name: str, values: Array, chunks: list[bytes] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "shape": list(values.shape),
        "datatype": _NAMES_OF.get(values.dtype, "FP32"),
    }
    if chunks is None:
        found["data"] = values.ravel().tolist()
    else:
        chunks.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        found["parameters"] = {"binary_data_size": len(chunks[-1])}
    return found


def datatype_of(array: Array) -> str:
    """What the protocol calls an array's dtype."""
    return _NAMES_OF[array.dtype]


def metadata(label: Label, platform: str, contract: Contract, links: Sequence[Link] = ()) -> bytes:
    """Body of ``GET /v2/models/{name}``; the contract is our declared extension."""

    def tensor(spec: InputSpec | OutputSpec) -> Mapping[str, Any]:
        shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
        return {"name": spec.name, "datatype": _NAMES.get(spec.dtype, "BYTES"), "shape": shape}

    return msgspec.json.encode(
        {
            "name": label.model,
            "versions": [label.version],
            "platform": platform,
            "inputs": [tensor(spec) for spec in contract.inputs],
            "outputs": [tensor(spec) for spec in contract.outputs],
            "edgekit_contract": contract,
            "edgekit_slot": label.slot,
            **({"edgekit_compose": links} if links else {}),
        }
    )
