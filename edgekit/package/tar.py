"""Layers as normalised tars: equal content gives equal bytes, whoever packs it and when.

Sorted names, one mtime, uid and gid 0, no owner names, no extended headers besides long names;
gzip without a name or time. The bytes also depend on zlib's version, as every gzip does.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from edgekit.contracts import digest
from edgekit.contracts.errors import translate_os_errors

LAYER_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
GZIP_LEVEL = 6  # 9 takes three times as long for 1 % less


@dataclass(frozen=True)
class Entry:
    """One thing in a layer. ``content`` opens a file's bytes; ``link`` is a symlink's target."""

    path: str
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    size: int = 0
    link: str = ""
    content: Callable[[], AbstractContextManager[IO[bytes]]] | None = None


class LayerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Identity and sizes of a layer; ``diff_id`` is the digest of the uncompressed tar."""

    digest: str
    diff_id: str
    size: int  # bytes, compressed
    unpacked: int  # bytes of the files in it


class _Hashing(io.RawIOBase):
    """Passes writes on and hashes them."""

    def __init__(self, target: gzip.GzipFile) -> None:
        self._target, self.hash = target, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raw = bytes(data)  # type: ignore[call-overload]  # any buffer
        self.hash.update(raw)
        return self._target.write(raw)


def file(path: str, data: bytes | Path, mode: int = 0o644) -> Entry:
    """A regular file from bytes or from a file on disk."""
    if isinstance(data, Path):
        return Entry(path, mode, size=data.stat().st_size, content=lambda: data.open("rb"))
    return Entry(path, mode, size=len(data), content=lambda: io.BytesIO(data))


def with_folders(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` and the folders above them that are not among them, sorted; links come last.

    A hard link must follow its target, and a symlink must not lead what follows elsewhere.
    """
    found = {entry.path: entry for entry in entries}
    for path in list(found):
        for above in PurePosixPath(path).parents:
            if str(above) not in {".", *found}:
                found[str(above)] = Entry(str(above), 0o755, tarfile.DIRTYPE)
    return sorted(found.values(), key=lambda e: (e.kind == tarfile.LNKTYPE, e.path.split("/")))


def write(entries: Iterable[Entry], out: Path, *, mtime: int = 0) -> LayerFacts:
    """Write a layer to ``out``.

    Raises:
        ResourceError, BadInputError: it cannot be written, or a source cannot be read.
    """
    unpacked = 0
    with translate_os_errors("write", out), out.open("wb") as stream:
        packed = gzip.GzipFile("", "wb", GZIP_LEVEL, stream, mtime=0)
        plain = _Hashing(packed)
        with packed, tarfile.open(fileobj=plain, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for entry in with_folders(entries):
                info = tarfile.TarInfo(entry.path)
                info.type, info.mode, info.mtime = entry.kind, entry.mode & 0o1777, mtime
                info.size, info.linkname = entry.size, entry.link
                unpacked += entry.size
                if entry.content is None:
                    tar.addfile(info)
                else:
                    with entry.content() as content:
                        tar.addfile(info, content)
    name, size = digest.of_file(out)
    diff_id = "sha256:" + plain.hash.hexdigest()
    return LayerFacts(digest=name, diff_id=diff_id, size=size, unpacked=unpacked)
