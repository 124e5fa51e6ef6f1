"""Reading side of bundles: verify every byte, unpack all or nothing.

A bundle that this module returns was re-read and hashed: manifest, config and every file.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.contracts import bundle, codec, digest
from edgekit.contracts.bundle import BundleManifest, Role
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX
from edgekit.contracts.oci import (
    MANIFEST_MEDIA_TYPE,
    REF_NAME,
    Descriptor,
    LayoutReader,
    Manifest,
)
from edgekit.registry import files


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle whose every blob matched its digest when it was read."""

    reader: LayoutReader
    digest: str
    tag: str | None
    manifest: BundleManifest
    descriptors: tuple[Descriptor, ...]  # manifest, config and layers: all that is transferred

    @property
    def size(self) -> int:
        """Bytes of everything: OCI manifest, config and files."""
        return sum(entry.size for entry in self.descriptors)

    def evidence(self) -> dict[str, Any]:
        """The build's evidence; empty when the bundle holds none.

        Raises:
            BadInputError: it is no JSON object.
        """
        entry = self.manifest.file(Role.EVIDENCE)
        if entry is None:
            return {}
        raw = self.reader.read_blob(entry.sha256, bytes_max=DOCUMENT_BYTES_MAX)
        return codec.decode(dict[str, Any], raw, what=f"bundle {self.tag}: {entry.path}")


def split_reference(text: str) -> tuple[LayoutReader, str | None]:
    """``LAYOUT[@REF]``; an existing folder whose name holds ``@`` wins."""
    folder, _, reference = text.rpartition("@")
    if not folder or Path(text).is_dir():
        return LayoutReader(Path(text)), None
    return LayoutReader(Path(folder)), reference


def is_bundle(oci: Manifest) -> bool:
    """Whether an OCI manifest is one of a bundle (a layout may hold images too)."""
    return oci.config.media_type == bundle.CONFIG_MEDIA_TYPE


def read(reader: LayoutReader, manifest_digest: str) -> VerifiedBundle:
    """The bundle with this manifest digest, every blob verified.

    Raises:
        BadInputError: not a bundle; a blob is missing or altered; manifest and config disagree.
    """
    oci = reader.manifest(manifest_digest)
    what = f"bundle {digest.short(manifest_digest)}"
    if not is_bundle(oci):
        raise BadInputError(
            f"{what}: is {oci.config.media_type}, not an edgekit bundle",
            hint="inspect reads what 'edgekit build' wrote",
        )
    for layer in oci.layers:
        reader.verify_blob(layer)
    raw = reader.read_blob(oci.config.digest, bytes_max=DOCUMENT_BYTES_MAX)
    manifest = bundle.validate(codec.decode(BundleManifest, raw, what=what))
    layers = {(layer.digest, layer.size) for layer in oci.layers}
    for entry in manifest.files:
        if (entry.sha256, entry.size) not in layers:
            raise BadInputError(f"{what}: file {entry.path} is not a layer of its OCI manifest")
    itself = Descriptor(
        media_type=oci.media_type,
        digest=manifest_digest,
        size=reader.blob_path(manifest_digest).stat().st_size,
    )
    return VerifiedBundle(
        reader=reader,
        digest=manifest_digest,
        tag=_tag(reader, manifest_digest),
        manifest=manifest,
        descriptors=(itself, oci.config, *oci.layers),
    )


def _tag(reader: LayoutReader, manifest_digest: str) -> str | None:
    entries = reader.index().manifests
    found = (m.annotations.get(REF_NAME) for m in entries if m.digest == manifest_digest)
    return next(found, None)


def find(text: str) -> VerifiedBundle:
    """The bundle that ``LAYOUT[@REF]`` names: the only one when there is no reference.

    Raises:
        BadInputError: unknown, ambiguous, damaged or not a bundle.
    """
    reader, reference = split_reference(text)
    return read(reader, reader.resolve(reference))


def find_all(text: str) -> list[VerifiedBundle]:
    """The bundle that ``LAYOUT@REF`` names, or all bundles of ``LAYOUT``.

    Raises:
        BadInputError: as `find`; images beside the bundles are passed over.
    """
    reader, reference = split_reference(text)
    if reference is not None:
        return [read(reader, reader.resolve(reference))]
    entries = [m for m in reader.index().manifests if m.media_type == MANIFEST_MEDIA_TYPE]
    return [
        read(reader, entry.digest) for entry in entries if is_bundle(reader.manifest(entry.digest))
    ]


def unpack(source: VerifiedBundle, out: Path) -> None:
    """Write a bundle's files and its manifest, ``bundle.json``, into the new folder ``out``.

    The folder appears under its name by one rename, complete and durable, or not at all. Paths
    cannot leave it: `bundle.validate` refused those that would.

    Raises:
        BadInputError: ``out`` exists already, a blob changed since it was verified.
        ResourceError: disk full.
    """
    manifest_name = "bundle.json"
    if any(entry.path.partition("/")[0] == manifest_name for entry in source.manifest.files):
        raise BadInputError(f"bundle {source.tag}: holds a file called {manifest_name} itself")
    if out.exists() or out.is_symlink():
        raise BadInputError(f"{out}: exists already", hint="choose a folder that does not")
    with translate_os_errors("write", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:40]}."))
    try:
        for entry in source.manifest.files:
            target = partial / entry.path
            _copy(source.reader.blob_path(entry.sha256), target, entry.sha256)
        files.write_atomic(partial / manifest_name, codec.encode_pretty(source.manifest))
        with translate_os_errors("write", out):
            partial.chmod(0o755)
            partial.rename(out)
            files.sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy(blob: Path, target: Path, expected: str) -> None:
    files.copy_atomic(blob, target)
    if digest.of_file(target)[0] != expected:
        raise BadInputError(
            f"{blob}: changed while it was unpacked", hint="run the same command again"
        )
