"""Crash-safe files: write beside, fsync, rename, fsync the folder.

A reader sees the old file, the new file or none, never a part of one. On any failure the temporary
file is removed, so that a full disk leaves nothing half-written behind.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgekit.contracts import digest
from edgekit.contracts.errors import translate_os_errors


def sync_folder(folder: Path) -> None:
    """Make the entries of ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes ``path`` when the block ends without an exception.

    Raises:
        ResourceError: disk full or read-only.
        BadInputError: the folder cannot be written.
    """
    with translate_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp"
        )
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` as the whole content of ``path``."""
    with atomic_writer(path) as stream:
        stream.write(data)


def copy_atomic(source: Path, target: Path) -> None:
    """Copy the content of ``source`` to ``target`` in bounded chunks."""
    with (
        translate_os_errors("read", source),
        source.open("rb") as reader,
        atomic_writer(target) as writer,
    ):
        while chunk := reader.read(digest.CHUNK_BYTES):
            writer.write(chunk)
