"""Opens a bundle from any folder that holds ``blobs/sha256``: an OCI layout or the device's store.

Every blob is read again and hashed before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.contracts import bundle, codec, contract, digest, reference
from edgekit.contracts.bundle import BundleFile, BundleManifest, Role
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.golden import Tolerance
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.oci import Descriptor, LayoutReader
from edgekit.contracts.reference import Reference
from edgekit.contracts.shadow import Expectation
from edgekit_runtime import versions
from edgekit_runtime.errors import UnsuitableError

if TYPE_CHECKING:
    from edgekit_runtime.golden import GoldenSet


class Bundle(msgspec.Struct, frozen=True):
    """A verified bundle."""

    digest: str
    manifest: BundleManifest
    contract: Contract
    model_path: Path
    weights_path: Path | None = None
    golden: GoldenSet | None = None
    reference: Reference | None = None  # by whose bins is counted
    expectation: Expectation | None = None  # of its agreement with the original


def read_manifest(blobs: LayoutReader, manifest_digest: str) -> BundleManifest:
    """The bundle manifest, checked against the OCI manifest that refers to it.

    Raises:
        BadInputError: missing, altered, or the two disagree.
    """
    oci = blobs.manifest(manifest_digest)
    what = f"bundle {digest.short(manifest_digest)}"
    if oci.config.media_type != bundle.CONFIG_MEDIA_TYPE:
        raise BadInputError(f"{what}: config is {oci.config.media_type}, not an edgekit bundle")
    raw = blobs.read_blob(oci.config.digest, bytes_max=DOCUMENT_BYTES_MAX)
    manifest = bundle.validate(codec.decode(BundleManifest, raw, what=f"{what}: manifest"))
    layers = {(layer.digest, layer.size) for layer in oci.layers}
    for entry in manifest.files:
        if (entry.sha256, entry.size) not in layers:
            raise BadInputError(f"{what}: file {entry.path} is not a layer of its OCI manifest")
    return manifest


def open_bundle(blobs: LayoutReader, manifest_digest: str) -> Bundle:
    """Verify every file of a bundle and decode what the device needs.

    Raises:
        BadInputError: a blob is missing or altered, or a document is malformed.
    """
    manifest = read_manifest(blobs, manifest_digest)
    paths = {entry.path: _verified(blobs, entry) for entry in manifest.files}
    entry = manifest.required(Role.CONTRACT)
    weights = manifest.file(Role.WEIGHTS)
    found = contract.validate(codec.read(Contract, paths[entry.path]))
    return Bundle(
        digest=manifest_digest,
        manifest=manifest,
        contract=found,
        model_path=paths[manifest.required(Role.MODEL).path],
        weights_path=paths[weights.path] if weights else None,
        golden=_golden(manifest, paths, found),
        reference=_reference(manifest, paths),
        expectation=_expectation(manifest, paths),
    )


def open_promised(blobs: LayoutReader, model: str, ref: SlotRef) -> Bundle:
    """`open_bundle` of ``ref``, when it is what that promises.

    Raises:
        BadInputError: a blob is missing or altered, a document malformed.
        UnsuitableError: another model or target.
    """
    found = open_bundle(blobs, ref.digest)
    manifest = found.manifest
    if manifest.model != model or manifest.target != ref.target:
        raise UnsuitableError(
            f"bundle {digest.short(ref.digest)} is {manifest.model} for {manifest.target}, "
            f"not {model} for {ref.target}"
        )
    return found


def check_engine(manifest: BundleManifest, engine: str, version: str) -> None:
    """Return when the engine fits the bundle.

    Raises:
        UnsuitableError: another engine, or a version outside the range the bundle was built for.
    """
    name = f"bundle {manifest.model} {manifest.version}"
    try:
        fits = manifest.engine == engine and versions.satisfies(version, manifest.engine_versions)
    except BadInputError as exc:
        raise UnsuitableError(f"{name}: engine_versions: {exc.message}") from exc
    if not fits:
        raise UnsuitableError(
            f"{name}: needs {manifest.engine} {manifest.engine_versions}, "
            f"this is {engine} {version}",
            hint="build the bundle for this engine version or update the engine",
        )


def _verified(blobs: LayoutReader, entry: BundleFile) -> Path:
    media = bundle.FILE_MEDIA_TYPE
    return blobs.verify_blob(Descriptor(media_type=media, digest=entry.sha256, size=entry.size))


def _reference(manifest: BundleManifest, paths: Mapping[str, Path]) -> Reference | None:
    entry = manifest.file(Role.REFERENCE)
    if entry is None:
        return None
    from edgekit.stats import probes  # noqa: PLC0415 - needs numpy, see edgekit_runtime.ahead

    found = reference.validate(codec.read(Reference, paths[entry.path]))
    if found.edges_digest != probes.digest(found.groups):
        # Windows of equal digests are added up: a wrong one would mix what must not be mixed.
        raise BadInputError(
            f"bundle {manifest.model} {manifest.version}: {entry.path}: edges_digest does not "
            "belong to its edges",
            hint="build the bundle again with `edgekit build`",
        )
    return found


def _expectation(manifest: BundleManifest, paths: Mapping[str, Path]) -> Expectation | None:
    entry = manifest.file(Role.SHADOW)
    if entry is None:
        return None
    found = codec.read(Expectation, paths[entry.path])
    if not (0.0 <= found.agreement_min <= 1.0 and found.abs >= 0.0 and found.rel >= 0.0):
        raise BadInputError(
            f"bundle {manifest.model} {manifest.version}: {entry.path}: its figures cannot be met"
        )
    return found


def _golden(
    manifest: BundleManifest, paths: Mapping[str, Path], found: Contract
) -> GoldenSet | None:
    entry = manifest.file(Role.GOLDEN)
    if entry is None:
        return None
    from edgekit_runtime import golden  # noqa: PLC0415 - needs numpy, see edgekit_runtime.ahead

    what = f"bundle {manifest.model} {manifest.version}: {entry.path}"
    tolerance = manifest.file(Role.TOLERANCE)
    limits = codec.read(Tolerance, paths[tolerance.path]) if tolerance else Tolerance()
    return golden.read(paths[entry.path], entry.size, found, limits, what=what)
