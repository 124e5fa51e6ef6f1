"""From the bytes of one item to the arrays a contract asks for. No I/O.

What comes out has the contract's names, dtypes and shapes, one sample a batch; declared
preprocessing (`edgekit.preprocess`) is done by whoever runs the model, as for every client.
"""

from __future__ import annotations

import io
import math
from typing import Any

import msgspec
import numpy as np

from edgekit.contracts.contract import Contract, InputSpec
from edgekit.contracts.errors import BadInputError
from edgekit_runtime import guard
from edgekit_runtime.pipelines import images
from edgekit_runtime.pipelines.spec import Payload, Source
from edgekit_runtime.ports import Array


def arrays_of(contract: Contract, source: Source, payload: Any) -> dict[str, Array]:
    """The inputs in ``payload``: bytes, or a camera's image as an array in RGB.

    Raises:
        BadInputError: they are not there, or do not fit; names what and why.
        UsageError: a library for them is not installed.
    """
    if source.payload is Payload.JSON:
        return _json(contract, source.fields, payload)
    spec = _only_input(contract, source.payload.value)
    if source.payload is Payload.RAW:
        return {spec.name: _raw(spec, payload)}
    if source.payload is Payload.NPY:
        return {spec.name: _shaped(spec, guard.conform(spec, _npy(payload)))}
    image = payload if isinstance(payload, np.ndarray) else images.decode(payload)
    fitted = images.fitted(spec, image, source.fit, source.colour)
    return {spec.name: _shaped(spec, fitted)}


def json_id(payload: bytes, key: str) -> str | None:
    """The id that a JSON object says of itself; None when there is none that can be used."""
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    value = found.get(key) if isinstance(found, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    return text if 0 < len(text) <= 200 else None


def _json(contract: Contract, fields: tuple[str, ...], payload: bytes) -> dict[str, Array]:
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadInputError(f"payload: not JSON: {exc}") from exc
    if fields:
        spec = _only_input(contract, "json with fields")
        if not isinstance(found, dict):
            raise BadInputError("payload: not a JSON object")
        missing = [each for each in fields if each not in found]
        if missing:
            raise BadInputError(f"payload: field {missing[0]!r} is missing")
        return {spec.name: _numbers(spec, [found[each] for each in fields])}
    if not isinstance(found, dict):
        spec = _only_input(contract, "a JSON array")
        return {spec.name: _numbers(spec, found)}
    missing = [spec.name for spec in contract.inputs if spec.name not in found]
    if missing:
        raise BadInputError(f"payload: input {missing[0]!r} is missing")
    return {spec.name: _numbers(spec, found[spec.name]) for spec in contract.inputs}


def _numbers(spec: InputSpec, values: Any) -> Array:
    what, wanted = f"payload: input {spec.name!r}", np.dtype(spec.dtype)
    try:
        given = np.asarray(values)
    except (ValueError, OverflowError) as exc:
        raise BadInputError(f"{what}: not a regular array of numbers") from exc
    if given.dtype.kind not in "biuf" or given.size == 0:
        raise BadInputError(f"{what}: not a regular array of numbers")
    array = given.astype(wanted)
    if wanted.kind in "iub" and not np.array_equal(array, given):
        raise BadInputError(f"{what}: holds values that are not {spec.dtype}")
    return _shaped(spec, array)


def _raw(spec: InputSpec, payload: bytes) -> Array:
    wanted = np.dtype(spec.dtype)
    if not payload or len(payload) % wanted.itemsize:
        raise BadInputError(
            f"payload: {len(payload)} bytes are no whole number of {spec.dtype} values"
        )
    values = np.frombuffer(payload, wanted.newbyteorder("<")).astype(wanted)
    shape = _sample_shape(spec)
    known = math.prod(dim for dim in shape if isinstance(dim, int))
    unknown = sum(isinstance(dim, str) for dim in shape)
    if unknown > 1 or values.size % known or (not unknown and values.size != known):
        raise BadInputError(f"payload: {values.size} values for input {_described(spec)}")
    result: Array = values.reshape([1, *(dim if isinstance(dim, int) else -1 for dim in shape)])
    return result


def _npy(payload: bytes) -> Array:
    stream = io.BytesIO(payload)
    shape, fortran, dtype = _npy_header(stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise BadInputError(f"payload: npy of dtype {dtype}")
    if 0 in shape:
        raise BadInputError("payload: an npy array without values")
    # The header is not believed: what it announces may be larger than memory.
    data = payload[stream.tell() :]
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise BadInputError(f"payload: {len(data)} bytes for an npy of shape {list(shape)}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False))


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        return (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
    except Exception as exc:
        raise BadInputError(f"payload: not an npy array: {exc}") from exc


def _only_input(contract: Contract, what: str) -> InputSpec:
    if len(contract.inputs) != 1:
        names = ", ".join(spec.name for spec in contract.inputs)
        raise BadInputError(
            f"payload: {what} is one array, the model has inputs {names}",
            hint="send a JSON object with one member for each input",
        )
    return contract.inputs[0]


def _shaped(spec: InputSpec, array: Array) -> Array:
    """``array`` with a batch axis; whether the rest fits, the guard decides."""
    result: Array = array[None] if array.ndim == len(spec.shape) - 1 else array
    first = spec.shape[0]
    if isinstance(first, int) and first > 1 and len(result) == 1:
        raise BadInputError(f"payload: one sample, the model takes {first} at once")
    return result


def _sample_shape(spec: InputSpec) -> tuple[int | str, ...]:
    first = spec.shape[0]
    if isinstance(first, int) and first != 1:
        raise BadInputError(f"payload: one sample, input {_described(spec)} takes {first} at once")
    return spec.shape[1:]


def _described(spec: InputSpec) -> str:
    return f"{spec.name!r} [{', '.join(str(dim) for dim in spec.shape)}]"
