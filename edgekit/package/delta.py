"""Makes deltas between bundles: patches of the files that changed, where they are worth it.

Only what saves bytes is kept: a patch as large as its file is dropped, and a delta without patches
says that whole files are the shorter way. A patch is applied again before it is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgekit.contracts import codec, delta, digest, oci, zstd
from edgekit.contracts.errors import BugError, translate_os_errors
from edgekit.contracts.oci import Descriptor, LayoutReader, Manifest
from edgekit.package.layout import LayoutTransaction, transaction
from edgekit.package.reader import VerifiedBundle

BLOCK_BYTES = 16 * 1024 * 1024  # of the result in a frame: what a device holds of it at once
REACH_BYTES = 8 * 1024 * 1024  # of the old file to either side: how far content may have moved
FILE_BYTES_MIN = 256  # a smaller file costs less than the words about its patch
_Blob = tuple[LayoutReader, str]  # where it lies, and its digest
OVERHEAD_BYTES = 512  # what a layer adds to the delta's manifest; a patch must save more


class FileDelta(msgspec.Struct, frozen=True, kw_only=True):
    """One changed file. ``patch_bytes`` is None when it travels whole."""

    path: str
    full_bytes: int
    patch_bytes: int | None


class DeltaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A delta, and what it saves. Transfers count every byte a device fetches."""

    digest: str
    base: str
    subject: str
    files: tuple[FileDelta, ...]
    transfer_bytes: int  # with the delta: its manifest, patches, and what comes whole
    full_bytes: int  # without: blobs the base does not hold


def make(base: VerifiedBundle, new: VerifiedBundle, out: Path, *, tag: str | None) -> DeltaFacts:
    """Make the delta from ``base`` to ``new`` and store it in the layout ``out``.

    Args:
        base: what devices hold.
        new: what they are to run.
        out: layout folder; may be that of ``new``.
        tag: reference in that layout; None stores it under its digest alone.

    Raises:
        BadInputError, ResourceError: a file cannot be read, or the delta not be written.
    """
    held = {blob.digest for blob in base.descriptors}
    before = {file.path: file for file in base.manifest.files}
    with transaction(out) as change:
        layers: list[Descriptor] = []
        told: list[FileDelta] = []
        for file in new.manifest.files:
            if file.sha256 in held:
                continue
            held.add(file.sha256)  # equal files travel once
            old, layer = before.get(file.path), None
            if old is not None and file.size >= FILE_BYTES_MIN:
                source, target = (base.reader, old.sha256), (new.reader, file.sha256)
                layer = _patch(change, source, target, file.size)
            if layer is not None:
                layers.append(layer)
            size = None if layer is None else layer.size
            told.append(FileDelta(path=file.path, full_bytes=file.size, patch_bytes=size))
        change.put(oci.EMPTY_CONTENT, oci.EMPTY_MEDIA_TYPE)
        manifest = delta.compose(base.digest, new.descriptors[0], tuple(layers))
        stored = _store(change, manifest, tag)
    had = {blob.digest for blob in base.descriptors}
    full = sum({b.digest: b.size for b in new.descriptors if b.digest not in had}.values())
    saved = sum(f.full_bytes - f.patch_bytes for f in told if f.patch_bytes is not None)
    return DeltaFacts(
        digest=stored.digest,
        base=base.digest,
        subject=new.digest,
        files=tuple(told),
        transfer_bytes=full - saved + stored.size,
        full_bytes=full,
    )


def _store(change: LayoutTransaction, manifest: Manifest, tag: str | None) -> Descriptor:
    if tag is not None:
        return change.tag(manifest, tag)
    return change.put(codec.encode(manifest), oci.MANIFEST_MEDIA_TYPE)


def _patch(change: LayoutTransaction, source: _Blob, target: _Blob, size: int) -> Descriptor | None:
    """The layer of a patch; None when the whole file is not longer."""
    old, wanted = source[1], target[1]
    written = _Frames(source[0].blob_path(old), target[0].blob_path(wanted), size)
    with translate_os_errors("read", written.new):
        patch = written.compress(limit=size - OVERHEAD_BYTES)
        if patch is None:
            return None
        if written.result(patch) != wanted:
            raise BugError(f"the patch from {old} to {wanted} yields another file")
    blob = change.put(patch, delta.PATCH_MEDIA_TYPE)
    return delta.describe(blob, old, wanted, BLOCK_BYTES, REACH_BYTES)


@dataclass
class _Frames:
    """Both files of a patch."""

    old: Path
    new: Path
    size: int

    def _spans(self) -> list[delta.Span]:
        return delta.spans(self.old.stat().st_size, self.size, BLOCK_BYTES, REACH_BYTES)

    def compress(self, *, limit: int) -> bytes | None:
        """The patch; None once it would be longer than ``limit``."""
        found = bytearray()
        with self.old.open("rb") as old, self.new.open("rb") as new:
            for span in self._spans():
                prefix = _read_at(old, span.start, span.end - span.start)
                found += zstd.compress(new.read(span.size), prefix)
                if len(found) > limit:
                    return None
        return bytes(found)

    def result(self, patch: bytes) -> str:
        """Digest of what a device will make of it."""
        found = hashlib.sha256()
        with self.old.open("rb") as old:
            chunks = zstd.apply(lambda at, n: _read_at(old, at, n), self._spans(), _pieces(patch))
            for chunk in chunks:
                found.update(chunk)
        return "sha256:" + found.hexdigest()


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), digest.CHUNK_BYTES):
        yield data[at : at + digest.CHUNK_BYTES]
