"""A bundle's golden set: inputs, and the outputs that this variant must reproduce."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.golden import INPUT_PREFIX, OUTPUT_PREFIX, Tolerance
from edgekit_runtime.ports import Array

BYTES_MAX = 64 * 1024 * 1024  # 64 inputs of a megapixel image; more would stall activation


class GoldenSet(msgspec.Struct, frozen=True):
    """Inputs, the outputs this variant must reproduce, and how exactly."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: Tolerance


def read(
    path: Path, size: int, contract: Contract, tolerance: Tolerance, *, what: str
) -> GoldenSet:
    """The golden set in ``path``, a file of ``size`` bytes.

    Raises:
        BadInputError: too large, or its arrays are not the contract's.
    """
    if size > BYTES_MAX:
        raise BadInputError(f"{what}: {size} bytes, more than {BYTES_MAX}")
    arrays = load_npz(path, what)
    inputs = {
        name.removeprefix(INPUT_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(INPUT_PREFIX)
    }
    outputs = {
        name.removeprefix(OUTPUT_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(OUTPUT_PREFIX)
    }
    if set(inputs) != {spec.name for spec in contract.inputs} or not outputs:
        raise BadInputError(f"{what}: arrays {sorted(arrays)} do not fit the contract")
    return GoldenSet(inputs, outputs, tolerance)


def load_npz(source: Path | bytes, what: str) -> dict[str, Array]:
    """All arrays of an ``.npz``; pickled objects are refused.

    Raises:
        BadInputError: missing, not an npz, or it holds Python objects.
    """
    from zipfile import BadZipFile  # noqa: PLC0415 - 4 ms, and most starts read no golden set

    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with (
            translate_os_errors("read", what),
            np.load(stream, allow_pickle=False) as archive,
        ):
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise BadInputError(f"{what}: a single array, not an .npz archive")
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, BadZipFile, KeyError) as exc:
        raise BadInputError(f"{what}: not a readable .npz archive: {exc}") from exc
