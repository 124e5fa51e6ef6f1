"""A small document in two alternating copies: a crash at any byte leaves the one before it.

Each copy is ``magic | generation u64 | length u32 | crc32 u32 | payload``; the CRC covers the
header before it and the payload. The highest valid generation wins; a write goes over the *older*
copy and is followed by fsyncs of file and folder. When copies exist and none is valid they are
moved aside (``.broken``) and the document starts from nothing, which the caller reports.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit_runtime.ports import Disk

T = TypeVar("T")
_HEADER = struct.Struct("<4sQI")
_CRC = struct.Struct("<I")
_MAGIC = b"EKD1"
_START = _HEADER.size + _CRC.size
DOCUMENT_BYTES_MAX = 4 * 1024 * 1024


class Loaded(msgspec.Struct, Generic[T], frozen=True):
    """What was found; ``broken`` says that copies existed and none could be read."""

    value: T | None
    generation: int
    broken: bool


class TwoCopy(Generic[T]):
    """The document ``name`` of type ``kind`` in ``folder`` (files ``name.a`` and ``name.b``)."""

    def __init__(self, disk: Disk, folder: Path, name: str, kind: type[T]) -> None:
        self._disk = disk
        self._paths = (folder / f"{name}.a", folder / f"{name}.b")
        self._kind = kind
        self._generations = [-1, -1]

    def peek(self) -> Loaded[T]:
        """Read without changing anything on disk."""
        best: T | None = None
        present = False
        for index, path in enumerate(self._paths):
            raw = self._disk.read(path, bytes_max=DOCUMENT_BYTES_MAX + _START)
            present = present or raw is not None
            generation, value = self._parse(raw, path)
            self._generations[index] = generation
            if value is not None and generation == max(self._generations):
                best = value
        return Loaded(best, max(self._generations), present and best is None)

    def load(self) -> Loaded[T]:
        """Read; unreadable copies are moved aside so that the next write starts clean."""
        found = self.peek()
        if found.broken:
            for path in self._paths:
                if self._disk.size(path) is not None:
                    self._disk.rename(path, path.with_name(path.name + ".broken"))
        return found

    def save(self, value: T) -> int:
        """Write ``value`` over the older copy; durable when this returns its generation.

        Raises:
            ResourceError: the disk is full; the newer copy still holds the last value.
        """
        generation = max(self._generations) + 1
        payload = codec.encode(value)
        header = _HEADER.pack(_MAGIC, generation, len(payload))
        crc = _CRC.pack(zlib.crc32(payload, zlib.crc32(header)))
        older = self._generations.index(min(self._generations))
        self._generations[older] = -1  # until the write is done, this copy counts as torn
        self._disk.overwrite(self._paths[older], header + crc + payload)
        self._generations[older] = generation
        return generation

    def _parse(self, raw: bytes | None, path: Path) -> tuple[int, T | None]:
        if raw is None or len(raw) < _START:
            return -1, None
        magic, generation, length = _HEADER.unpack_from(raw)
        (crc,) = _CRC.unpack_from(raw, _HEADER.size)
        payload = raw[_START : _START + length]
        if magic != _MAGIC or len(payload) != length or length == 0:
            return -1, None
        if zlib.crc32(payload, zlib.crc32(raw[: _HEADER.size])) != crc:
            return -1, None
        try:
            return generation, codec.decode(self._kind, payload, what=str(path))
        except BadInputError:
            return -1, None  # intact bytes of another edgekit's shape: as good as unreadable
