"""Artifact store: what lies behind the OCI distribution API, in a folder or a bucket.

``blobs/sha256/<hex>`` hold everything; ``repositories/<name>/manifests/<hex>`` are markers that say
which manifests belong to which repository (their content is the media type), ``…/tags/<tag>`` hold
digests, ``…/referrers/<hex>/<hex>`` descriptors of what refers to a manifest. A blob appears under
its name only whole, verified and durable, so a crash leaves at most a temporary file, which the
next start removes. Uploads grow in a local folder, wherever they end.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.contracts import codec, digest, oci
from edgekit.contracts.errors import BadInputError, ResourceError, translate_os_errors
from edgekit.contracts.ids import check_name
from edgekit.contracts.limits import MODEL_BYTES_MAX
from edgekit.contracts.oci import Descriptor, Index, Manifest
from edgekit_fleet.errors import MissingBlobError
from edgekit_fleet.objects import FolderObjects, Objects

MARKER_BYTES_MAX = 64 * 1024  # a media type, a digest, or a descriptor with its annotations
REFERRERS_MAX = 256  # of one manifest that are listed; each costs a read
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def check_repository(name: str) -> str:
    """Return ``name`` when it is a repository: names joined by slashes.

    Raises:
        BadInputError: it is not (this check keeps ``..`` out of paths).
    """
    for part in name.split("/"):
        check_name(part, "repository")
    return name


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
        found = "sha256:" + self._hash.hexdigest()
        if found != expected:
            raise BadInputError(
                f"upload is {digest.short(found)}, not the {digest.short(expected)} announced"
            )
        with translate_os_errors("write", self._path):
            self._file.close()
        self._store.objects.adopt(blob_key(expected), self._path)

    def discard(self) -> None:
        """Remove what is left of an upload that did not finish; harmless after `finish`."""
        with suppress(OSError):  # what could not be flushed is thrown away here
            self._file.close()
        self._path.unlink(missing_ok=True)


def blob_key(blob: str) -> str:
    """Key of a blob. Raises `BadInputError` when it is no digest."""
    return f"blobs/sha256/{digest.hex_of(blob)}"


@dataclass(frozen=True)
class ArtifactStore:
    """Artifacts in ``objects``, uploads in progress in ``uploads``; use `ArtifactStore.open`."""

    objects: Objects
    uploads: Path

    @classmethod
    def open(cls, root: Path, objects: Objects | None = None) -> ArtifactStore:
        """Create the folders and clear what a crash left behind.

        Args:
            root: local folder.
            objects: where artifacts lie; None: in ``root`` too.

        Raises:
            BadInputError, ResourceError: the folder cannot be used.
        """
        uploads = root / "uploads"
        with translate_os_errors("create", root):
            uploads.mkdir(parents=True, exist_ok=True)
            for left in uploads.iterdir():
                left.unlink()
        return cls(objects or FolderObjects(root, uploads), uploads)

    def size(self, blob: str) -> int | None:
        """Size of a blob, or None when it is absent."""
        return self.objects.size(blob_key(blob))

    def stream(self, blob: str, first: int, last: int) -> Iterator[bytes]:
        """Part of a blob that is there."""
        return self.objects.stream(blob_key(blob), first, last)

    def _repository(self, name: str) -> str:
        return f"repositories/{check_repository(name)}"

    def _marker(self, key: str) -> str | None:
        raw = self.objects.read(key, MARKER_BYTES_MAX)
        return None if raw is None else raw.decode(errors="replace").strip()

    def resolve(self, name: str, reference: str) -> tuple[str, str] | None:
        """Digest and media type of a manifest of repository ``name``; None when it has none such.

        Raises:
            BadInputError: malformed name or reference.
        """
        folder = self._repository(name)
        if not reference.startswith("sha256:"):
            if not _TAG.fullmatch(reference):
                raise BadInputError(f"reference {reference[:80]!r} is neither a digest nor a tag")
            tagged = self._marker(f"{folder}/tags/{reference}")
            if tagged is None:
                return None
            reference = tagged
        media_type = self._marker(f"{folder}/manifests/{digest.hex_of(reference)}")
        return None if media_type is None else (reference, media_type)

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
        self._mark(f"{folder}/manifests/{digest.hex_of(found)}", manifest.media_type)
        if isinstance(manifest, Manifest) and isinstance(manifest.subject, Descriptor):
            self._refer(folder, manifest, found, len(raw))
        if not is_digest:
            self._mark(f"{folder}/tags/{reference}", found)
        return found

    def _refer(self, folder: str, manifest: Manifest, found: str, size: int) -> None:
        assert isinstance(manifest.subject, Descriptor)
        entry = Descriptor(
            media_type=manifest.media_type,
            digest=found,
            size=size,
            # Without a type of its own an artifact has its config's (*Listing Referrers*).
            artifact_type=manifest.artifact_type or manifest.config.media_type,
            annotations=manifest.annotations,
        )
        raw = codec.encode(entry)
        if len(raw) > MARKER_BYTES_MAX:
            raise BadInputError(f"manifest {digest.short(found)}: annotations are too long to list")
        subject = digest.hex_of(manifest.subject.digest)
        self.objects.write(f"{folder}/referrers/{subject}/{digest.hex_of(found)}", raw)

    def referrers(self, name: str, subject: str, artifact_type: str | None) -> Index:
        """What refers to a manifest, whether that is here or not; of one type when it is given.

        Raises:
            BadInputError: malformed name or digest.
        """
        folder = f"{self._repository(name)}/referrers/{digest.hex_of(subject)}"
        found = []
        for marker in (self.objects.names(folder) or [])[:REFERRERS_MAX]:
            raw = self.objects.read(f"{folder}/{marker}", MARKER_BYTES_MAX)
            if raw is not None:
                found.append(codec.decode(Descriptor, raw, what=f"referrer {marker}"))
        kept = [e for e in found if artifact_type is None or e.artifact_type == artifact_type]
        return Index(manifests=tuple(kept))

    def _missing(self, folder: str, manifest: Manifest | Index) -> Iterator[str]:
        """What ``manifest`` refers to and repository ``folder`` lacks; a subject may be absent."""
        if isinstance(manifest, Index):
            for entry in manifest.manifests:
                key = f"{folder}/manifests/{digest.hex_of(entry.digest)}"
                if self.objects.size(key) is None:
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
        if self.objects.names(f"{folder}/manifests") is None:
            return None
        return self.objects.names(f"{folder}/tags") or []

    def _mark(self, key: str, text: str) -> None:
        self.objects.write(key, text.encode())


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
