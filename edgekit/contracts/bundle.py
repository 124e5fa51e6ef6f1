"""Bundle: everything one variant of one model needs on one target, as an OCI artifact.

The OCI config blob is the `BundleManifest`; each file is one layer. A bundle is identified by the
digest of its OCI manifest.
"""

from __future__ import annotations

from enum import Enum
from pathlib import PurePosixPath
from typing import Any

import msgspec

from edgekit.contracts import digest
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.limits import BUNDLE_FILES_MAX, MODEL_BYTES_MAX

ARTIFACT_TYPE = "application/vnd.edgekit.bundle.v1"
CONFIG_MEDIA_TYPE = "application/vnd.edgekit.bundle.config.v1+json"
FILE_MEDIA_TYPE = "application/vnd.edgekit.bundle.file.v1"
# Path of a layer's file: CNCF ModelPack spec (modelpack/model-spec, docs/annotations.md).
FILE_PATH = "org.cncf.model.filepath"


class Role(str, Enum):
    """What a file is for. Readers ignore roles they do not know."""

    MODEL = "model"
    WEIGHTS = "weights"  # the second file of a model that comes in two (OpenVINO IR's .bin)
    CONTRACT = "contract"
    GOLDEN = "golden"
    TOLERANCE = "tolerance"
    REFERENCE = "reference"  # frozen bin edges and reference counts for the monitors
    SHADOW = "shadow"  # how far this variant agrees with the original
    CALIBRATION = "calibration"  # confidence calibration table
    CARD = "card"
    EVIDENCE = "evidence"
    SBOM = "sbom"  # CycloneDX, with its ML part
    PROVENANCE = "provenance"  # in-toto statement with a SLSA provenance predicate


# Layer media types of the ModelPack spec (specs-go/v1/mediatype.go) where it has one that fits.
_MODEL_PACK = "application/vnd.cncf.model"
_MEDIA_TYPES = {
    Role.MODEL: f"{_MODEL_PACK}.weight.v1.raw",
    Role.WEIGHTS: f"{_MODEL_PACK}.weight.v1.raw",
    Role.CONTRACT: f"{_MODEL_PACK}.weight.config.v1.raw",
    Role.GOLDEN: f"{_MODEL_PACK}.dataset.v1.raw",
    Role.CARD: f"{_MODEL_PACK}.doc.v1.raw",
    Role.SBOM: "application/vnd.cyclonedx+json",
    Role.PROVENANCE: "application/vnd.in-toto+json",
}


def media_type(role: Role) -> str:
    """Media type of the OCI layer that carries a file with ``role``."""
    return _MEDIA_TYPES.get(role, FILE_MEDIA_TYPE)


class BundleFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. ``path`` is relative and uses ``/``."""

    path: str
    role: str
    sha256: str  # digest in the form sha256:<hex>
    size: int  # bytes


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a bundle and what it was built for."""

    schema: int = 1
    model: str
    version: str
    target: str
    precision: str
    engine: str
    engine_versions: str  # PEP 440 specifier the engine on the device must satisfy
    files: tuple[BundleFile, ...]
    labels: dict[str, Any] = {}
    engine_options: dict[str, str] = {}  # how the engine ran it when it was measured

    def file(self, role: Role) -> BundleFile | None:
        """The file with ``role``, or None."""
        return next((entry for entry in self.files if entry.role == role.value), None)

    def required(self, role: Role) -> BundleFile:
        """The file with ``role``.

        Raises:
            BadInputError: the bundle has none.
        """
        entry = self.file(role)
        if entry is None:
            raise BadInputError(f"bundle {self.model} {self.version}: no {role.value} file")
        return entry


def validate(manifest: BundleManifest) -> BundleManifest:
    """Return ``manifest`` when it is safe to unpack.

    Raises:
        BadInputError: unknown schema, path that leaves the folder, bad digest or size, duplicates.
    """
    name = f"bundle {manifest.model} {manifest.version}"
    if manifest.schema != 1:
        raise BadInputError(
            f"{name}: schema {manifest.schema} is not known",
            hint="this bundle was written by a newer edgekit: upgrade",
        )
    if not 0 < len(manifest.files) <= BUNDLE_FILES_MAX:
        raise BadInputError(
            f"{name}: {len(manifest.files)} files, allowed are 1-{BUNDLE_FILES_MAX}"
        )
    seen: set[str] = set()
    for entry in manifest.files:
        if not _is_safe(entry.path) or entry.path in seen:
            raise BadInputError(f"{name}: file path {entry.path!r} is unsafe or repeated")
        seen.add(entry.path)
        digest.parse(entry.sha256)
        if not 0 <= entry.size <= MODEL_BYTES_MAX:
            raise BadInputError(f"{name}: file {entry.path}: size {entry.size} is out of bounds")
    for path in seen:
        above = next((str(p) for p in PurePosixPath(path).parents if str(p) in seen), None)
        if above is not None:
            raise BadInputError(f"{name}: {above!r} is a file and the folder of {path!r}")
    manifest.required(Role.MODEL)
    manifest.required(Role.CONTRACT)
    return manifest


def _is_safe(text: str) -> bool:
    """Whether a path is relative, in normal form, and stays in its folder on every system."""
    path = PurePosixPath(text)
    normal = bool(path.parts) and str(path) == text and not path.is_absolute()
    return normal and ".." not in path.parts and "\\" not in text and text.isprintable()
