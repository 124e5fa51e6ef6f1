"""Runtime: the agent, its engines and all they need on one platform, as an OCI artifact.

The config blob is the `RuntimeManifest`, each wheel is a layer, so a new agent with the same engine
ships its own wheel alone. On a device a runtime lies unpacked in ``runtimes/<hex of its manifest>``
(`edgekit.contracts.device.bootstrap`), so that agents and engines can be kept side by side, tried
and gone back to like models.
"""

from __future__ import annotations

import math
import re

import msgspec

from edgekit.contracts import digest
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import VariantRef

ARTIFACT_TYPE = "application/vnd.edgekit.runtime.v1"
CONFIG_MEDIA_TYPE = "application/vnd.edgekit.runtime.config.v1+json"
WHEEL_MEDIA_TYPE = "application/vnd.edgekit.runtime.wheel.v1+zip"
SBOM_MEDIA_TYPE = "application/vnd.cyclonedx+json"
REPOSITORY = "runtime"  # where a manager looks for what it gives to joining devices
GLIBC = "edgekit.runtime.glibc"  # annotation: the lowest a device must have, e.g. 2.36
WHEELS_MAX = 128
ARCHES = ("amd64", "arm64")
_FILE = re.compile(r"[A-Za-z0-9_.+!]+(-[A-Za-z0-9_.+!]+){4,5}\.whl|sbom\.cdx\.json")


class RuntimeFile(msgspec.Struct, frozen=True, kw_only=True):
    """A wheel, or the list of what is in them."""

    path: str
    sha256: str
    size: int


class RuntimeManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime is and where it runs. ``python`` and ``glibc`` read as ``3.11``, ``2.36``."""

    schema: int = 1
    version: str  # of edgekit
    arch: str
    python: str  # exactly this one: wheels with compiled parts fit one minor version
    glibc: str  # this one or a newer
    engines: dict[str, str]
    packages: dict[str, str]
    files: tuple[RuntimeFile, ...]


class RuntimeTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What ``desired.runtime`` asks for; ``variants`` by `tag_of`. The rest is the trial."""

    release: str
    variants: dict[str, VariantRef]
    retry_token: str = ""  # a changed token lifts the quarantine of a failed runtime
    tries: int = 3  # starts before it is given up
    report_s: float = 300.0  # in which it must report that it works
    confirm_s: float = 600.0  # for which it must then stay alive


def check_target(target: RuntimeTarget) -> RuntimeTarget:
    """Return ``target`` when it can be obeyed.

    Raises:
        BadInputError: names the field.
    """
    for variant in target.variants.values():
        digest.parse(variant.digest)
    if target.tries < 1:
        raise BadInputError(f"runtime.tries: {target.tries} is below 1")
    for name in ("report_s", "confirm_s"):
        value = getattr(target, name)
        if not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"runtime.{name}: {value} is not a duration in seconds")
    return target


def tag_of(arch: str, python: str) -> str:
    """The tag under which the runtime for new devices of a platform is found."""
    return f"{arch}-cp{python.replace('.', '')}"


def validate(manifest: RuntimeManifest) -> RuntimeManifest:
    """Return ``manifest`` when it is safe to unpack.

    Raises:
        BadInputError: unknown schema or platform, a name that is no wheel's, bad digest or size.
    """
    what = f"runtime {manifest.version} for {manifest.arch}"
    if manifest.schema != 1:
        raise BadInputError(
            f"{what}: schema {manifest.schema} is not known", hint="upgrade edgekit"
        )
    if manifest.arch not in ARCHES:
        raise BadInputError(f"{what}: the architecture is none of {', '.join(ARCHES)}")
    for name in ("python", "glibc"):
        if not re.fullmatch(r"\d{1,2}\.\d{1,3}", getattr(manifest, name)):
            raise BadInputError(f"{what}: {name} {getattr(manifest, name)[:20]!r} is no version")
    if not 0 < len(manifest.files) <= WHEELS_MAX:
        raise BadInputError(f"{what}: {len(manifest.files)} files, allowed are 1-{WHEELS_MAX}")
    for file in manifest.files:
        if not _FILE.fullmatch(file.path) or file.size <= 0:
            raise BadInputError(f"{what}: {file.path[:100]!r} is no wheel")
        digest.parse(file.sha256)
    return manifest
