"""Deterministic ``.npz`` files: equal arrays give equal bytes, and reading maps instead of loading.

Members are stored uncompressed, in name order, with a fixed time. That makes the file's digest
identify its content, and lets `open_mapped` hand out memory maps, so that a large data set costs
address space rather than memory.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.registry import files

Array = npt.NDArray[Any]
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip member can carry
_ZIP64_FROM_BYTES = 1 << 31
_LOCAL_HEADER_BYTES = 30


def _write(stream: BinaryIO, arrays: Mapping[str, Array]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            array = np.ascontiguousarray(arrays[name])
            zip64 = array.nbytes >= _ZIP64_FROM_BYTES
            with archive.open(info, "w", force_zip64=zip64) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def write(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write ``arrays`` to ``path`` atomically."""
    with files.atomic_writer(path) as stream:
        _write(stream, arrays)


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The bytes `write` would write; for small sets."""
    buffer = io.BytesIO()
    _write(buffer, arrays)
    return buffer.getvalue()


def read(path: Path) -> dict[str, Array]:
    """Load all arrays of any ``.npz``.

    Raises:
        BadInputError: missing, not an npz file, or it holds Python objects.
    """
    # Opened here, because np.load leaves a damaged file open.
    with translate_os_errors("read", path), path.open("rb") as stream:
        try:
            with np.load(stream, allow_pickle=False) as archive:
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise BadInputError(f"{path}: holds one array without a name, not an .npz")
                return {name: archive[name] for name in archive.files}
        except (ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as exc:
            # numpy takes whatever is no array for a pickle: only inside a zip that tells anything.
            objects = zipfile.is_zipfile(path) and "pickle" in str(exc)
            problem = "holds Python objects" if objects else "is not a readable .npz"
            raise BadInputError(
                f"{path}: {problem}",
                hint="write it with numpy.savez(path, input_name=array, labels=array)",
            ) from exc


def open_mapped(path: Path) -> dict[str, Array]:
    """Memory maps of a file that `write` produced.

    Raises:
        BadInputError: unreadable, or not written by `write`.
    """
    with translate_os_errors("read", path):
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
                return {
                    info.filename.removesuffix(".npy"): _map(path, raw, info)
                    for info in archive.infolist()
                }
        except (zipfile.BadZipFile, ValueError) as exc:
            raise BadInputError(
                f"{path}: not a stored data set: {exc}", hint="add the data set again"
            ) from exc


def release(arrays: Mapping[str, Array]) -> None:
    """Give back the pages of arrays from `open_mapped` that were read; they are read again at need.

    Without it a pass over a data set ends with all of it in memory, as far as limits can tell.
    """
    for array in arrays.values():
        if isinstance(array, np.memmap):
            mapped: mmap.mmap = array._mmap  # type: ignore[attr-defined]  # noqa: SLF001
            mapped.madvise(mmap.MADV_DONTNEED)


def _map(path: Path, raw: BinaryIO, info: zipfile.ZipInfo) -> Array:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"member {info.filename} is compressed")
    raw.seek(info.header_offset)
    header = raw.read(_LOCAL_HEADER_BYTES)
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    raw.seek(info.header_offset + _LOCAL_HEADER_BYTES + names)
    version = np.lib.format.read_magic(raw)
    reader = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = reader(raw)
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(
        path, dtype=dtype, mode="r", offset=raw.tell(), shape=shape, order="F" if fortran else "C"
    )
