"""Writes and reads runtimes: the agent and its engines for one platform (`contracts.runtime`).

Wheels are those of the environment that builds, in the same versions, for the platform named;
nothing of them is run. The agent is a wheel too, made here: equal code gives equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from packaging.requirements import InvalidRequirement, Requirement

from edgekit import __version__
from edgekit.contracts import codec, digest
from edgekit.contracts.device import bootstrap
from edgekit.contracts.device.bootstrap import BootstrapError
from edgekit.contracts.errors import BadInputError, UsageError, translate_os_errors
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX
from edgekit.contracts.oci import TITLE, Descriptor, LayoutReader, Manifest
from edgekit.contracts.runtime import (
    ARTIFACT_TYPE,
    CONFIG_MEDIA_TYPE,
    GLIBC,
    SBOM_MEDIA_TYPE,
    WHEEL_MEDIA_TYPE,
    RuntimeFile,
    RuntimeManifest,
    tag_of,
    validate,
)
from edgekit.package import evidence, licences, wheels
from edgekit.package.image import HOME, agent_files
from edgekit.package.layout import transaction
from edgekit.package.rootfs import BaseFacts

ENGINES = ("onnxruntime", "openvino", "tensorrt")
EXTRAS = ("runtime", "delta")  # of edgekit-ml: what a device has
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
_AGENT = f"{HOME}/agent/"
SBOM = "sbom.cdx.json"


@dataclass(frozen=True)
class VerifiedRuntime:
    """A runtime whose every blob matched its digest when it was read."""

    reader: LayoutReader
    digest: str
    manifest: RuntimeManifest
    descriptors: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes of everything."""
        return sum(entry.size for entry in self.descriptors)


def facts(arch: str, python: str, glibc: str) -> BaseFacts:
    """The platform a runtime is for.

    Raises:
        UsageError: a version is none.
    """
    try:
        versions = [tuple(int(part) for part in text.split(".")) for text in (python, glibc)]
        (major, minor), (libc, libc_minor) = versions
    except ValueError as exc:
        raise UsageError(
            f"--python {python} or --glibc {glibc} is no version", hint="for example 3.11 and 2.36"
        ) from exc
    return BaseFacts(arch=arch, python=(major, minor), glibc=(libc, libc_minor))


def agent_wheel() -> tuple[str, bytes]:
    """Name and bytes of a wheel with the device's part of edgekit."""
    entries = {
        entry.path.removeprefix(_AGENT): _read(entry)
        for entry in agent_files()
        if entry.path.startswith(_AGENT)
    }
    info = f"edgekit_ml-{__version__}.dist-info"
    told = f"Metadata-Version: 2.1\nName: edgekit-ml\nVersion: {__version__}\n"
    entries[f"{info}/METADATA"] = (told + "License-Expression: Apache-2.0\n").encode()
    entries[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: edgekit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = f"{info}/RECORD"
    lines = [f"{name},{_hash(data)},{len(data)}" for name, data in sorted(entries.items())]
    entries[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(entries.items()):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = 0o644 << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return f"edgekit_ml-{__version__}-py3-none-any.whl", stream.getvalue()


def _read(entry: object) -> bytes:
    content = getattr(entry, "content", None)
    assert content is not None
    with content() as stream:
        return bytes(stream.read())


def _hash(data: bytes) -> str:
    raw = hashlib.sha256(data).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _pins(platform: BaseFacts, more: Sequence[str]) -> dict[str, str]:
    environment = wheels.environment(platform)
    found: dict[str, str] = {}
    for extra in EXTRAS:
        found |= wheels.pins("edgekit-ml", extra, environment)
    for text in more:
        try:
            wanted = Requirement(text)
            (version,) = wanted.specifier
        except (InvalidRequirement, ValueError) as exc:
            raise UsageError(f"--package {text!r} is not NAME==VERSION") from exc
        if version.operator != "==":
            raise UsageError(f"--package {text!r}: a runtime pins exact versions: NAME==VERSION")
        found[wanted.name.lower()] = version.version
    return dict(sorted(found.items()))


def build(
    platform: BaseFacts, wheel_folder: Path, out: Path, *, more: Sequence[str] = ()
) -> VerifiedRuntime:
    """Write a runtime for ``platform`` into the layout ``out``.

    Args:
        platform: of the devices.
        wheel_folder: wheels to use and keep.
        out: OCI layout folder.
        more: further packages, ``NAME==VERSION``; their own needs must be named too.

    Raises:
        BadInputError: a package has no wheel for the platform; says what would mend it.
        UnavailableError: the package index is not reachable.
    """
    assert platform.arch is not None
    assert platform.python is not None
    assert platform.glibc is not None
    pins = _pins(platform, more)
    files = wheels.fetch(pins, platform, wheel_folder, "onnxruntime")
    name, own = agent_wheel()
    python, glibc = (".".join(map(str, each)) for each in (platform.python, platform.glibc))
    with transaction(out) as change:
        layers = [_named(change.put(own, WHEEL_MEDIA_TYPE), name)]
        layers += [_named(change.put(path, WHEEL_MEDIA_TYPE), path.name) for path in files]
        sbom = evidence.runtime_sbom(pins, licences.of_wheels(files), __version__)
        layers.append(_named(change.put(sbom, SBOM_MEDIA_TYPE), SBOM))
        manifest = validate(
            RuntimeManifest(
                version=__version__,
                arch=platform.arch,
                python=python,
                glibc=glibc,
                engines={engine: pins[engine] for engine in ENGINES if engine in pins},
                packages=pins,
                files=tuple(
                    RuntimeFile(path=e.annotations[TITLE], sha256=e.digest, size=e.size)
                    for e in layers
                ),
            )
        )
        config = change.put(codec.encode_pretty(manifest), CONFIG_MEDIA_TYPE)
        document = Manifest(
            artifact_type=ARTIFACT_TYPE,
            config=config,
            layers=tuple(layers),
            annotations={GLIBC: glibc, "org.opencontainers.image.version": __version__},
        )
        entry = change.tag(document, tag_of(platform.arch, python))
    return read(LayoutReader(out), entry.digest)


def _named(blob: Descriptor, name: str) -> Descriptor:
    return msgspec.structs.replace(blob, annotations={TITLE: name})


def read(reader: LayoutReader, manifest_digest: str) -> VerifiedRuntime:
    """The runtime with this digest, every blob verified.

    Raises:
        BadInputError: no runtime; a blob is missing or altered; manifest and config disagree.
    """
    oci = reader.manifest(manifest_digest)
    what = f"runtime {digest.short(manifest_digest)}"
    if oci.config.media_type != CONFIG_MEDIA_TYPE:
        raise BadInputError(
            f"{what}: is {oci.config.media_type}, not a runtime",
            hint="runtimes are written by 'edgekit runtime build'",
        )
    for layer in oci.layers:
        reader.verify_blob(layer)
    raw = reader.read_blob(oci.config.digest, bytes_max=DOCUMENT_BYTES_MAX)
    manifest = validate(codec.decode(RuntimeManifest, raw, what=what))
    layers = {(layer.digest, layer.size) for layer in oci.layers}
    for file in manifest.files:
        if (file.sha256, file.size) not in layers:
            raise BadInputError(f"{what}: {file.path} is not a layer of its manifest")
    size = reader.blob_path(manifest_digest).stat().st_size
    itself = Descriptor(media_type=oci.media_type, digest=manifest_digest, size=size)
    return VerifiedRuntime(reader, manifest_digest, manifest, (itself, oci.config, *oci.layers))


def find_all(reader: LayoutReader, reference: str | None) -> list[VerifiedRuntime]:
    """The runtime tagged ``reference``, or all of a layout; other artifacts are passed over."""
    if reference is not None:
        return [read(reader, reader.resolve(reference))]
    entries = [e for e in reader.index().manifests if e.artifact_type == ARTIFACT_TYPE]
    return [read(reader, entry.digest) for entry in entries]


def unpack(source: VerifiedRuntime, runtimes: Path) -> Path:
    """Lay out a runtime in ``runtimes``, with the code that does it on devices; its folder.

    Raises:
        BadInputError: a wheel is damaged or would write outside its folder.
        ResourceError: disk full.
    """

    def blob(wanted: str) -> Iterator[bytes]:
        with source.reader.blob_path(wanted).open("rb") as file:
            while chunk := file.read(digest.CHUNK_BYTES):
                yield chunk

    try:
        with translate_os_errors("write", runtimes):
            return bootstrap.install(blob, blob, source.digest, runtimes, lambda _: None)
    except BootstrapError as exc:
        raise BadInputError(str(exc)) from exc
