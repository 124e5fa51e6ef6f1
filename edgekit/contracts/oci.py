"""Reading side of OCI image layouts (image-spec v1.1: image-layout.md, manifest.md, index.md).

Only what edgekit reads and writes is modelled; unknown fields are ignored here and survive in the
stored bytes, which are never re-encoded.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX

MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_MEDIA_TYPE = "application/vnd.oci.image.index.v1+json"
# Docker's older names for the same two shapes (image-spec v1.1 media-types.md, compatibility).
DOCKER_MANIFEST_MEDIA_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX_MEDIA_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_MEDIA_TYPES = (MANIFEST_MEDIA_TYPE, DOCKER_MANIFEST_MEDIA_TYPE)
INDEX_MEDIA_TYPES = (INDEX_MEDIA_TYPE, DOCKER_INDEX_MEDIA_TYPE)
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
EMPTY_MEDIA_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_CONTENT = b"{}"  # manifest.md, *Guidance for an Empty Descriptor*


class Platform(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What an image runs on, in Go's names."""

    architecture: str
    os: str
    variant: str | None = None


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Typed pointer to a blob."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str | None = None
    platform: Platform | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """OCI image manifest used as an artifact manifest."""

    schema_version: int = 2
    media_type: str = MANIFEST_MEDIA_TYPE
    artifact_type: str | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | msgspec.UnsetType = msgspec.UNSET  # what this one refers to
    annotations: dict[str, str] = {}


EMPTY = Descriptor(
    media_type=EMPTY_MEDIA_TYPE, digest=digest.of_bytes(EMPTY_CONTENT), size=len(EMPTY_CONTENT)
)


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """OCI image index (``index.json`` of a layout)."""

    schema_version: int = 2
    media_type: str = INDEX_MEDIA_TYPE
    manifests: tuple[Descriptor, ...] = ()


class _Shape(msgspec.Struct, rename="camel"):
    media_type: str = ""
    manifests: tuple[msgspec.Raw, ...] | None = None


def decode_any(raw: bytes, what: str) -> Manifest | Index:
    """Decode a manifest or an index, whichever ``raw`` is, and check its digests and sizes.

    Raises:
        BadInputError: neither, malformed, or of another media type.
    """
    shape = codec.decode(_Shape, raw, what=what, bytes_max=OCI_MANIFEST_BYTES_MAX)
    if shape.media_type in INDEX_MEDIA_TYPES or (not shape.media_type and shape.manifests):
        return check_index(codec.decode(Index, raw, what=what), what)
    if shape.media_type in (*MANIFEST_MEDIA_TYPES, ""):
        return check_manifest(codec.decode(Manifest, raw, what=what), what)
    raise BadInputError(f"{what}: media type {shape.media_type[:80]!r} is not known")


def check_index(index: Index, what: str) -> Index:
    """Return ``index`` when every digest and size in it is well formed.

    Raises:
        BadInputError: otherwise.
    """
    if index.schema_version != 2:
        raise BadInputError(f"{what}: schemaVersion {index.schema_version} is not 2")
    for descriptor in index.manifests:
        digest.parse(descriptor.digest)
        if descriptor.size < 0:
            raise BadInputError(f"{what}: negative size for {descriptor.digest}")
    return index


def check_manifest(manifest: Manifest, what: str) -> Manifest:
    """Return ``manifest`` when every digest and size in it is well formed.

    Raises:
        BadInputError: otherwise.
    """
    if manifest.schema_version != 2:
        raise BadInputError(f"{what}: schemaVersion {manifest.schema_version} is not 2")
    subject = (manifest.subject,) if isinstance(manifest.subject, Descriptor) else ()
    for descriptor in (manifest.config, *manifest.layers, *subject):
        digest.parse(descriptor.digest)
        if descriptor.size < 0:
            raise BadInputError(f"{what}: negative size for {descriptor.digest}")
    return manifest


class LayoutReader(msgspec.Struct, frozen=True):
    """Read access to an OCI layout folder; every read is verified by digest."""

    root: Path

    def check(self) -> None:
        """Raises `BadInputError` when ``root`` is not an OCI layout."""
        if not (self.root / LAYOUT_FILE).is_file():
            raise BadInputError(
                f"{self.root}: not an OCI layout (no {LAYOUT_FILE} file)",
                hint="pass the folder that `edgekit build` wrote",
            )

    def index(self) -> Index:
        """The layout's index."""
        self.check()
        return codec.read(Index, self.root / INDEX_FILE, bytes_max=OCI_MANIFEST_BYTES_MAX)

    def blob_path(self, blob: str) -> Path:
        """Where a blob lies (it may be absent)."""
        return self.root / "blobs" / "sha256" / digest.hex_of(blob)

    def read_blob(self, blob: str, *, bytes_max: int) -> bytes:
        """Bytes of a small blob, verified.

        Raises:
            BadInputError: missing, larger than ``bytes_max`` or altered.
        """
        path = self.blob_path(blob)
        with translate_os_errors("read", path):
            if path.stat().st_size > bytes_max:
                raise BadInputError(f"{path}: larger than the {bytes_max} bytes allowed")
            data = path.read_bytes()
        if digest.of_bytes(data) != blob:
            raise BadInputError(
                f"{path}: content does not match its digest (corrupted)",
                hint="build or pull the bundle again",
            )
        return data

    def verify_blob(self, descriptor: Descriptor) -> Path:
        """Path of a blob of any size after re-reading and hashing it.

        Raises:
            BadInputError: missing or altered.
        """
        path = self.blob_path(descriptor.digest)
        found, size = digest.of_file(path)
        if found != descriptor.digest or size != descriptor.size:
            raise BadInputError(
                f"{path}: content does not match its digest (corrupted)",
                hint="build or pull the bundle again",
            )
        return path

    def manifest(self, manifest_digest: str) -> Manifest:
        """The verified manifest with this digest."""
        raw = self.read_blob(manifest_digest, bytes_max=OCI_MANIFEST_BYTES_MAX)
        what = f"manifest {digest.short(manifest_digest)}"
        return check_manifest(codec.decode(Manifest, raw, what=what), what)

    def manifest_or_index(self, manifest_digest: str) -> Manifest | Index:
        """The verified manifest or index with this digest."""
        raw = self.read_blob(manifest_digest, bytes_max=OCI_MANIFEST_BYTES_MAX)
        return decode_any(raw, f"manifest {digest.short(manifest_digest)}")

    def resolve(self, reference: str | None = None) -> str:
        """Digest of the manifest tagged ``reference``, or of the only one when None.

        Raises:
            BadInputError: unknown or ambiguous; lists what there is.
        """
        manifests = self.index().manifests
        names = {m.annotations.get(REF_NAME, digest.short(m.digest)): m.digest for m in manifests}
        if reference is None and len(manifests) == 1:
            return manifests[0].digest
        if reference is not None:
            for found in (names.get(reference), reference):
                if found and any(m.digest == found for m in manifests):
                    return found
        raise BadInputError(
            f"{self.root}: {'no manifest ' + reference if reference else 'several manifests'}",
            hint="this layout holds: " + (", ".join(sorted(names)) or "nothing"),
        )
