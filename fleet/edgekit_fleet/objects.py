"""Where artifacts lie: whole objects under keys, in a folder or a bucket.

A key is a path of safe names. An object appears under its key whole and durable, or not at all.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.contracts.errors import ResourceError, translate_os_errors

CHUNK_BYTES = 1024 * 1024


class Objects(Protocol):
    """Keys and their bytes. All methods raise `UnavailableError` when the place is not there."""

    def size(self, key: str) -> int | None:
        """Bytes of an object; None when it is absent."""

    def read(self, key: str, bytes_max: int) -> bytes | None:
        """A small object; None when it is absent. Raises `ResourceError` above ``bytes_max``."""

    def stream(self, key: str, first: int, last: int) -> Iterator[bytes]:
        """Bytes ``first`` to ``last`` (inclusive) of an object that is there."""

    def write(self, key: str, data: bytes) -> None:
        """Store a small object, replacing what was there. Raises `ResourceError`."""

    def adopt(self, key: str, path: Path) -> None:
        """Store the file ``path``, which the caller gives up. Raises `ResourceError`."""

    def names(self, folder: str) -> list[str] | None:
        """Sorted last parts of the keys right below ``folder``; None when there are none."""


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class FolderObjects:
    """`Objects` in a folder; ``temporary`` lies on the same file system."""

    root: Path
    temporary: Path

    def size(self, key: str) -> int | None:
        """See `Objects.size`."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str, bytes_max: int) -> bytes | None:
        """See `Objects.read`."""
        size = self.size(key)
        if size is None:
            return None
        if size > bytes_max:
            raise ResourceError(f"{key}: {size} bytes, more than {bytes_max}")
        with translate_os_errors("read", self.root / key):
            return (self.root / key).read_bytes()

    def stream(self, key: str, first: int, last: int) -> Iterator[bytes]:
        """See `Objects.stream`."""
        with (self.root / key).open("rb") as file:
            file.seek(first)
            left = last - first + 1
            while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk

    def write(self, key: str, data: bytes) -> None:
        """See `Objects.write`."""
        path = self.temporary / uuid.uuid4().hex
        try:
            with translate_os_errors("write", self.root / key), path.open("wb") as file:
                file.write(data)
            self.adopt(key, path)
        finally:
            path.unlink(missing_ok=True)

    def adopt(self, key: str, path: Path) -> None:
        """See `Objects.adopt`."""
        target = self.root / key
        with translate_os_errors("write", target):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            fsync_folder(target.parent)

    def names(self, folder: str) -> list[str] | None:
        """See `Objects.names`."""
        try:
            return sorted(os.listdir(self.root / folder))  # noqa: PTH208 - names, not paths
        except (FileNotFoundError, NotADirectoryError):
            return None
