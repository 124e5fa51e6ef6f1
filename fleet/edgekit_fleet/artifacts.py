"""Artifact store: the files behind the OCI distribution API.

``blobs/sha256/<hex>`` hold everything; ``repositories/<name>/manifests/<hex>`` are markers that say
which manifests belong to which repository (their content is the media type), ``…/tags/<tag>`` hold
digests. A blob appears under its name only whole, verified and fsynced, so a crash leaves at most a
temporary file, which the next start removes.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.contracts import digest, oci
from edgekit.contracts.errors import BadInputError, ResourceError, translate_os_errors
from edgekit.contracts.ids import check_name
from edgekit.contracts.limits import MODEL_BYTES_MAX
from edgekit_fleet.errors import MissingBlobError

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def check_repository(name: str) -> str:
    """Return ``name`` when it is a repository: names joined by slashes.

    Raises:
        BadInputError: it is not (this check keeps ``..`` out of paths).
    """
    for part in name.split("/"):
        check_name(part, "repository")
    return name


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class BlobWriter:
    """One upload: hashed while it is written, visible only after `finish`."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._path = store.uploads / uuid.uuid4().hex
        self._hash = hashlib.sha256()
        self.size = 0
        with translate_os_errors("write", self._path):
            self._file: BinaryIO = self._path.open("wb")

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``; after a failure the upload can only be discarded.

        Raises:
            ResourceError: disk full, or larger than any blob may be.
        """
        self.size += len(chunk)
        if self.size > MODEL_BYTES_MAX:
            raise ResourceError(f"upload: over {MODEL_BYTES_MAX} bytes")
        self._hash.update(chunk)
        with translate_os_errors("write", self._path):
            self._file.write(chunk)

    def finish(self, expected: str) -> None:
        """Verify and publish the blob.

        Raises:
            BadInputError: the bytes are not those of the digest.
        """
        target = self._store.blob_path(expected)
        found = "sha256:" + self._hash.hexdigest()
        if found != expected:
            raise BadInputError(
                f"upload is {digest.short(found)}, not the {digest.short(expected)} announced"
            )
        with translate_os_errors("write", self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.replace(target)
            fsync_folder(target.parent)

    def discard(self) -> None:
        """Remove what is left of an upload that did not finish; harmless after `finish`."""
        with suppress(OSError):  # what could not be flushed is thrown away here
            self._file.close()
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ArtifactStore:
    """Artifacts under ``root``; create with `ArtifactStore.open`."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> ArtifactStore:
        """Create the folders and clear what a crash left behind.

        Raises:
            BadInputError, ResourceError: the folder cannot be used.
        """
        store = cls(root)
        with translate_os_errors("create", root):
            (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            (root / "repositories").mkdir(exist_ok=True)
            store.uploads.mkdir(exist_ok=True)
            for left in store.uploads.iterdir():
                left.unlink()
        return store

    @property
    def uploads(self) -> Path:
        """Where uploads grow."""
        return self.root / "uploads"

    def blob_path(self, blob: str) -> Path:
        """Where the blob lies (it may be absent)."""
        return self.root / "blobs" / "sha256" / digest.hex_of(blob)

    def size(self, blob: str) -> int | None:
        """Size of a blob, or None when it is absent."""
        try:
            return self.blob_path(blob).stat().st_size
        except FileNotFoundError:
            return None

    def _repository(self, name: str) -> Path:
        return self.root / "repositories" / check_repository(name)

    def resolve(self, name: str, reference: str) -> tuple[str, str] | None:
        """Digest and media type of a manifest of repository ``name``; None when it has none such.

        Raises:
            BadInputError: malformed name or reference.
        """
        folder = self._repository(name)
        if not reference.startswith("sha256:"):
            if not _TAG.fullmatch(reference):
                raise BadInputError(f"reference {reference[:80]!r} is neither a digest nor a tag")
            try:
                reference = (folder / "tags" / reference).read_text().strip()
            except FileNotFoundError:
                return None
        marker = folder / "manifests" / digest.hex_of(reference)
        try:
            return reference, marker.read_text()
        except FileNotFoundError:
            return None

    def put_manifest(self, name: str, reference: str, raw: bytes) -> str:
        """Store a manifest whose blobs are all here; returns its digest.

        Raises:
            BadInputError: not a manifest, or another digest than announced.
            MissingBlobError: a blob or manifest it refers to is not here.
        """
        folder = self._repository(name)
        what = f"manifest {name}@{reference[:80]}"
        found = digest.of_bytes(raw)
        is_digest = reference.startswith("sha256:")
        if is_digest and digest.parse(reference) != found:
            raise BadInputError(f"{what}: the bytes have digest {digest.short(found)}")
        if not is_digest and not _TAG.fullmatch(reference):
            raise BadInputError(f"reference {reference[:80]!r} is neither a digest nor a tag")
        manifest = oci.decode_any(raw, what)
        for missing in self._missing(folder, manifest):
            raise MissingBlobError(
                f"{what}: blob {digest.short(missing)} is not here", hint="push it first"
            )
        writer = BlobWriter(self)
        try:
            writer.write(raw)
            writer.finish(found)
        finally:
            writer.discard()
        self._write(folder / "manifests" / digest.hex_of(found), manifest.media_type)
        if not is_digest:
            self._write(folder / "tags" / reference, found)
        return found

    def _missing(self, folder: Path, manifest: oci.Manifest | oci.Index) -> Iterator[str]:
        """What ``manifest`` refers to and repository ``folder`` lacks."""
        if isinstance(manifest, oci.Index):
            for entry in manifest.manifests:
                if not (folder / "manifests" / digest.hex_of(entry.digest)).is_file():
                    yield entry.digest
        else:
            for blob in (manifest.config, *manifest.layers):
                if self.size(blob.digest) != blob.size:
                    yield blob.digest

    def tags(self, name: str) -> list[str] | None:
        """Tags of a repository in lexical order; None when there is no such repository.

        Raises:
            BadInputError: malformed name.
        """
        folder = self._repository(name)
        if not (folder / "manifests").is_dir():
            return None
        tags = folder / "tags"
        return sorted(entry.name for entry in tags.iterdir()) if tags.is_dir() else []

    def _write(self, path: Path, text: str) -> None:
        with translate_os_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.uploads / uuid.uuid4().hex
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single ``bytes=`` range (RFC 9110 §14.2).

    Returns:
        None when the header is to be ignored: malformed, another unit, several ranges.

    Raises:
        ValueError: the range lies outside the representation (answer 416).
    """
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = int(match[2])
        if length == 0 or size == 0:
            raise ValueError("empty suffix range")
        return max(0, size - length), size - 1
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < first:
        return None
    if first >= size:
        raise ValueError("range starts beyond the end")
    return first, last
