"""Data files read a stretch at a time, so that a set larger than memory can be answered.

``.npz`` (one array for each input, stored or compressed), a folder of ``.npy`` (one for each input)
or ``.csv`` (a header, then numbers: the features of a model with one input; a last column called
``labels`` is left out). Rows are asked for in rising order.
"""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from edgekit.contracts import digest
from edgekit.contracts.contract import Contract, InputSpec
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.stats.metrics import LABELS
from edgekit_runtime.ports import Array

_FORMS = "an .npz file, a folder of .npy files or a .csv file"


class Column(Protocol):
    """One input's values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows together."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the values."""

    def rows(self, start: int, end: int) -> Array:
        """Rows ``[start, end)``; ``start`` is not before the last ``end``."""


class Rows:
    """The inputs of a contract in one file or folder."""

    def __init__(self, path: Path, contract: Contract) -> None:
        """Open it.

        Raises:
            BadInputError: missing, of no known form, or it does not fit the contract.
        """
        self.path = path
        self._columns = _open(path, contract)
        for spec in contract.inputs:
            _check(path, spec, self._columns)
        lengths = {name: column.shape[0] for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise BadInputError(f"{path}: rows per input: {lengths}; they must be equal, not zero")
        self.total = next(iter(lengths.values()))
        self.row_bytes = sum(
            column.dtype.itemsize * math.prod(column.shape[1:]) for column in self._columns.values()
        )

    def identity(self) -> str:
        """Digest of the content."""
        with translate_os_errors("read", self.path):
            if not self.path.is_dir():
                return digest.of_file(self.path)[0]
            listed = [
                f"{name} {digest.of_file(self.path / f'{name}.npy')[0]}" for name in self.names
            ]
            return digest.of_bytes("\n".join(listed).encode())

    @property
    def names(self) -> list[str]:
        """Of the inputs, sorted."""
        return sorted(self._columns)

    def take(self, start: int, end: int) -> dict[str, Array]:
        """Rows ``[start, end)`` of every input.

        Raises:
            BadInputError: the file is damaged or was cut while it was read.
        """
        with translate_os_errors("read", self.path):
            try:
                return {name: column.rows(start, end) for name, column in self._columns.items()}
            except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
                text = f"{self.path}: rows {start}-{end - 1} are not readable: {exc}"
                raise BadInputError(text) from exc


def _open(path: Path, contract: Contract) -> Mapping[str, Column]:
    names = [spec.name for spec in contract.inputs]
    with translate_os_errors("read", path):
        try:
            if path.is_dir():
                return {name: _Mapped(path / f"{name}.npy") for name in _needed(path, names)}
            if path.suffix == ".npz":
                return _npz(path, names)
            if path.suffix == ".csv":
                return {names[0]: _Table(path, contract)}
        except (ValueError, EOFError, zipfile.BadZipFile, csv.Error) as exc:
            raise BadInputError(f"{path}: not readable: {exc}", hint=f"expected {_FORMS}") from exc
        path.stat()  # that it is missing is a better reason
    raise BadInputError(f"{path}: unknown form", hint=f"expected {_FORMS}")


def _needed(folder: Path, names: list[str]) -> list[str]:
    found = sorted(each.stem for each in folder.glob("*.npy"))
    _require(names, found, folder)
    return names


def _require(names: list[str], found: list[str], path: Path) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise BadInputError(
            f"{path}: no array for input {missing[0]!r}",
            hint="arrays found: " + (", ".join(found) or "none"),
        )


def _check(path: Path, spec: InputSpec, columns: Mapping[str, Column]) -> None:
    """What is wrong with every row is wrong with the file."""
    shape, dtype = columns[spec.name].shape, columns[spec.name].dtype
    batched = len(shape) == len(spec.shape)
    inner = spec.shape[1:] if batched else spec.shape
    found = shape[1:]
    fits = len(found) == len(inner) and all(
        not isinstance(want, int) or want == have for want, have in zip(inner, found, strict=True)
    )
    kinds = {"f": "f", "i": "iub", "u": "iub"}.get(np.dtype(spec.dtype).kind, "")
    if not fits or (dtype.kind not in kinds and dtype != np.dtype(spec.dtype)):
        wanted = ", ".join(str(dim) for dim in inner)
        raise BadInputError(
            f"{path}: array {spec.name!r} has rows of {dtype} {list(found)}, "
            f"the contract wants {spec.dtype} [{wanted}]"
        )


class _Mapped:
    """A ``.npy`` file, mapped."""

    def __init__(self, path: Path) -> None:
        self._array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        if self._array.ndim == 0:
            raise ValueError(f"{path.name} has no rows")
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def rows(self, start: int, end: int) -> Array:
        """See `Column.rows`."""
        return np.array(self._array[start:end])


def _npz(path: Path, names: list[str]) -> Mapping[str, Column]:
    with zipfile.ZipFile(path) as archive:
        found = [name.removesuffix(".npy") for name in archive.namelist()]
    _require(names, found, path)
    return {name: _Member(path, name) for name in names}


class _Member:
    """One array of an ``.npz``, read forwards."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._member = f"{name}.npy"
        self._stream, self.shape, self._fortran, self.dtype = self._begin()
        if self.dtype.hasobject:
            raise ValueError(f"{self._member} holds Python objects")
        if not self.shape:
            raise ValueError(f"{self._member} has no rows")
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self._position = 0
        self._whole: Array | None = None

    def rows(self, start: int, end: int) -> Array:
        """See `Column.rows`."""
        if self._fortran and len(self.shape) > 1:
            return self._transposed()[start:end]
        self._stream.seek((start - self._position) * self._row_bytes, 1)
        wanted = (end - start) * self._row_bytes
        raw = self._stream.read(wanted)
        if len(raw) != wanted:
            raise EOFError(f"{self._member} ends early")
        self._position = end
        return np.frombuffer(raw, self.dtype).reshape(end - start, *self.shape[1:])

    def _transposed(self) -> Array:
        """Its rows are not contiguous: such an array has to be in memory as a whole."""
        if self._whole is None:
            raw = self._stream.read()
            self._whole = np.frombuffer(raw, self.dtype).reshape(self.shape[::-1]).T
        return self._whole

    def _begin(self) -> tuple[IO[bytes], tuple[int, ...], bool, np.dtype[np.generic]]:
        archive = zipfile.ZipFile(self._path)
        stream = archive.open(self._member)
        archive.close()  # the member keeps the file open
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        return stream, shape, fortran, dtype


class _Table:
    """A ``.csv`` file as the one input of a model."""

    def __init__(self, path: Path, contract: Contract) -> None:
        if len(contract.inputs) != 1:
            raise BadInputError(
                f"{path}: a .csv file fits models with one input, this has {len(contract.inputs)}",
                hint="give an .npz with an array for each input",
            )
        (spec,) = contract.inputs
        self._path = path
        inner = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
        if len(inner) != len(spec.shape) - 1:
            raise BadInputError(
                f"{path}: input {spec.name!r} has rows of varying size", hint="give an .npz"
            )
        header, count = self._scan()
        self._width = len(header)
        self._keep = self._width - (header[-1].strip() == LABELS)
        if self._keep != math.prod(inner):
            raise BadInputError(
                f"{path}: {self._keep} columns, a row of input {spec.name!r} has "
                f"{math.prod(inner)} values"
            )
        self.shape = (count, *inner)
        self.dtype: np.dtype[np.generic] = np.dtype(spec.dtype)
        self._lines = self._read()
        self._position = 0

    def rows(self, start: int, end: int) -> Array:
        """See `Column.rows`."""
        for _ in range(start - self._position):
            next(self._lines)
        values = np.empty((end - start, self._keep), np.float64)
        for index in range(end - start):
            number, row = next(self._lines)
            try:
                values[index] = [float(value) for value in row[: self._keep]]
            except ValueError as exc:
                raise BadInputError(f"{self._path}: line {number}: {exc}") from exc
        self._position = end
        found = values.astype(self.dtype)
        if self.dtype.kind != "f" and not np.array_equal(found, values):
            raise BadInputError(
                f"{self._path}: rows {start}-{end - 1} hold values that are not {self.dtype}"
            )
        return found.reshape(end - start, *self.shape[1:])

    def _scan(self) -> tuple[list[str], int]:
        with self._path.open(newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream), [])
        if not header:
            raise ValueError("the first line names no columns")
        return header, sum(1 for _ in self._read(len(header)))

    def _read(self, width: int | None = None) -> Iterator[tuple[int, list[str]]]:
        """Lines with their numbers, the header left out."""
        with self._path.open(newline="", encoding="utf-8") as stream:
            lines = csv.reader(stream)
            next(lines, None)
            for row in lines:
                if not row:
                    continue
                if len(row) != (width or self._width):
                    raise BadInputError(
                        f"{self._path}: line {lines.line_num} has {len(row)} columns, "
                        f"the first {width or self._width}"
                    )
                yield lines.line_num, row
