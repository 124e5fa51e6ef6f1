"""Opens a bundle from any folder that holds ``blobs/sha256``: an OCI layout or the device's store.

Every blob is read again and hashed before it is used.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit.contracts import bundle, codec, contract, digest, reference
from edgekit.contracts.bundle import BundleFile, BundleManifest, Role
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.golden import INPUT_PREFIX, OUTPUT_PREFIX, Tolerance
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX
from edgekit.contracts.oci import Descriptor, LayoutReader
from edgekit.contracts.reference import Reference
from edgekit.contracts.shadow import Expectation
from edgekit.stats import probes
from edgekit_runtime.errors import UnsuitableError
from edgekit_runtime.ports import Array

GOLDEN_BYTES_MAX = 64 * 1024 * 1024  # 64 inputs of a megapixel image; more would stall activation


@dataclass(frozen=True)
class GoldenSet:
    """Inputs, the outputs this variant must reproduce, and how exactly."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: Tolerance


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    digest: str
    manifest: BundleManifest
    contract: Contract
    model_path: Path
    weights_path: Path | None = None
    golden: GoldenSet | None = field(repr=False, default=None)
    reference: Reference | None = field(repr=False, default=None)  # by whose bins is counted
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


def check_engine(manifest: BundleManifest, engine: str, version: str) -> None:
    """Return when the engine fits the bundle.

    Raises:
        UnsuitableError: another engine, or a version outside the range the bundle was built for.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - slow
    from packaging.version import InvalidVersion, Version  # noqa: PLC0415 - slow

    name = f"bundle {manifest.model} {manifest.version}"
    try:
        fits = manifest.engine == engine and Version(version) in SpecifierSet(
            manifest.engine_versions, prereleases=True
        )
    except (InvalidSpecifier, InvalidVersion) as exc:
        raise UnsuitableError(f"{name}: engine_versions: {exc}") from exc
    if not fits:
        raise UnsuitableError(
            f"{name}: needs {manifest.engine} {manifest.engine_versions}, "
            f"this is {engine} {version}",
            hint="build the bundle for this engine version or update the engine",
        )


def load_npz(source: Path | bytes, what: str) -> dict[str, Array]:
    """All arrays of an ``.npz``; pickled objects are refused.

    Raises:
        BadInputError: missing, not an npz, or it holds Python objects.
    """
    from zipfile import BadZipFile  # noqa: PLC0415 - numpy imports it only now, too

    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with (
            translate_os_errors("read", what),
            np.load(stream, allow_pickle=False) as archive,
        ):
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise BadInputError(f"{what}: a single array, not an .npz archive")
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, BadZipFile, KeyError) as exc:
        raise BadInputError(f"{what}: not a readable .npz archive: {exc}") from exc


def _verified(blobs: LayoutReader, entry: BundleFile) -> Path:
    media = bundle.FILE_MEDIA_TYPE
    return blobs.verify_blob(Descriptor(media_type=media, digest=entry.sha256, size=entry.size))


def _reference(manifest: BundleManifest, paths: Mapping[str, Path]) -> Reference | None:
    entry = manifest.file(Role.REFERENCE)
    if entry is None:
        return None
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
    what = f"bundle {manifest.model} {manifest.version}: {entry.path}"
    if entry.size > GOLDEN_BYTES_MAX:
        raise BadInputError(f"{what}: {entry.size} bytes, more than {GOLDEN_BYTES_MAX}")
    arrays = load_npz(paths[entry.path], what)
    inputs = {
        name.removeprefix(INPUT_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(INPUT_PREFIX)
    }
    outputs = {
        name.removeprefix(OUTPUT_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(OUTPUT_PREFIX)
    }
    if set(inputs) != {spec.name for spec in found.inputs} or not outputs:
        raise BadInputError(f"{what}: arrays {sorted(arrays)} do not fit the contract")
    tolerance = manifest.file(Role.TOLERANCE)
    limits = codec.read(Tolerance, paths[tolerance.path]) if tolerance else Tolerance()
    return GoldenSet(inputs, outputs, limits)
