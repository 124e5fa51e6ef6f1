"""``NAME.release.json``: a release and where its bundles lie, until it is published."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.contracts import codec, oci
from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.bundle import validate as validate_bundle
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.image import BUNDLE_LABEL
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit.contracts.messages import ImageRef, VariantRef
from edgekit.contracts.release import Release
from edgekit.contracts.release import validate as validate_release

SUFFIX = ".release.json"


class ReleaseFile(msgspec.Struct, frozen=True, kw_only=True):
    """``layouts`` are folders relative to the file, searched in order."""

    schema: int = 1
    release: Release
    layouts: tuple[str, ...]


class BuiltVariant(msgspec.Struct, frozen=True, kw_only=True):
    """What a release takes from a variant of ``build-record.json``."""

    target: str
    repository: str
    digest: str | None
    bundle_bytes: int | None


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What a release takes from ``build-record.json``; the rest of it is for people and gates."""

    model: str
    version: str
    variants: tuple[BuiltVariant, ...]


RECORD_FILE = "build-record.json"


def layout_of(build_out: Path) -> oci.LayoutReader:
    """The OCI layout in a build's output folder.

    Raises:
        BadInputError: there is none.
    """
    for folder in (build_out, build_out / "layout", build_out / "oci"):
        if (folder / oci.LAYOUT_FILE).is_file():
            return oci.LayoutReader(folder)
    raise BadInputError(
        f"{build_out}: holds no bundles (no OCI layout)",
        hint="pass the folder that `edgekit build --out` wrote",
    )


def _verify(layout: oci.LayoutReader, built: Built, variant: BuiltVariant, digest: str) -> int:
    """Check that the bundle is what the record says; returns its bytes."""
    manifest = layout.manifest(digest)
    raw = layout.read_blob(manifest.config.digest, bytes_max=OCI_MANIFEST_BYTES_MAX)
    bundle = validate_bundle(codec.decode(BundleManifest, raw, what=f"bundle {digest}"))
    found = (bundle.model, bundle.version, bundle.target)
    if found != (built.model, built.version, variant.target):
        raise BadInputError(
            f"{layout.root}: bundle for {variant.target} says it is {' '.join(found)}",
            hint="build again into a fresh --out folder",
        )
    for descriptor in manifest.layers:
        layout.verify_blob(descriptor)
    return sum(entry.size for entry in (manifest.config, *manifest.layers))


def compose(name: str, build_outs: Sequence[Path], notes: str) -> tuple[Release, list[Path]]:
    """Make a release of every variant that passed its gates in ``build_outs``.

    Returns:
        The release, and the layouts that hold its bundles.

    Raises:
        BadInputError: records of different models or versions, a target twice, nothing that passed,
            a bundle missing or altered.
    """
    variants: dict[str, VariantRef] = {}
    layouts: list[Path] = []
    first: Built | None = None
    for folder in build_outs:
        built = codec.read(Built, folder / RECORD_FILE)
        first = first or built
        if (built.model, built.version) != (first.model, first.version):
            raise BadInputError(
                f"{folder}: built from {built.model}:{built.version}, but the first folder from "
                f"{first.model}:{first.version}",
                hint="one release holds variants of one model version",
            )
        layout = layout_of(folder)
        layouts.append(layout.root)
        for variant in built.variants:
            if variant.digest is None:  # a gate failed: there is no bundle
                continue
            if variant.target in variants:
                raise BadInputError(f"{folder}: target {variant.target} is in two folders")
            size = _verify(layout, built, variant, variant.digest)
            variants[variant.target] = VariantRef(
                digest=variant.digest, repository=variant.repository, size=size
            )
    if first is None or not variants:
        raise BadInputError(
            f"release {name}: no variant passed its gates", hint="see the build's report"
        )
    release = Release(
        name=name, model=first.model, version=first.version, variants=variants, notes=notes
    )
    return validate_release(release), layouts


def with_images(release: Release, folders: Sequence[Path]) -> tuple[Release, list[Path]]:
    """``release`` with the images that ``folders`` hold of its bundles.

    Returns:
        The release, and the layouts that hold the images.

    Raises:
        BadInputError: an image is damaged, of another bundle, or a target has two.
    """
    held: dict[str, ImageRef] = {}
    bundles = {variant.digest: target for target, variant in release.variants.items()}
    for folder in folders:
        layout = oci.LayoutReader(folder)
        for entry in layout.index().manifests:
            image = layout.manifest_or_index(entry.digest)
            if isinstance(image, oci.Index):
                continue  # the images below it are tagged themselves
            target = bundles.get(image.annotations.get(BUNDLE_LABEL, ""))
            if target is None:
                raise BadInputError(
                    f"{folder}: image {entry.annotations.get(oci.REF_NAME, entry.digest)} holds no "
                    f"bundle of release {release.name}",
                    hint="build the images from the same bundles: edgekit image build",
                )
            if target in held:
                raise BadInputError(f"{folder}: target {target} has two images")
            blobs = {blob.digest: blob for blob in (image.config, *image.layers)}
            for blob in blobs.values():
                layout.verify_blob(blob)
            held[target] = ImageRef(
                digest=entry.digest,
                repository=release.variants[target].repository,
                size=sum(blob.size for blob in blobs.values()),
            )
    variants = {
        target: msgspec.structs.replace(variant, image=held.get(target))
        for target, variant in release.variants.items()
    }
    return validate_release(msgspec.structs.replace(release, variants=variants)), list(folders)


def write(path: Path, release: Release, layouts: Sequence[Path]) -> None:
    """Write the file, whole or not at all.

    Raises:
        BadInputError, ResourceError: it cannot be written.
    """
    relative = tuple(os.path.relpath(layout, path.parent) for layout in layouts)
    document = codec.encode_pretty(ReleaseFile(release=release, layouts=relative))
    temporary = path.with_name(f".{path.name}.partial")
    with translate_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def find(text: str) -> Path:
    """The file called ``text``: a path, or a release's name in the usual places.

    Raises:
        BadInputError: there is none.
    """
    path = Path(text)
    if path.is_file():
        return path
    candidates = [Path(f"{text}{SUFFIX}"), *sorted(Path().glob(f"*/{text}{SUFFIX}"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise BadInputError(
        f"release {text!r}: no such file, and no {text}{SUFFIX} here",
        hint="`edgekit release create` writes it",
    )


def read(path: Path) -> tuple[Release, list[oci.LayoutReader]]:
    """The release and the layouts its bundles lie in.

    Raises:
        BadInputError: malformed, or of a newer edgekit.
    """
    document = codec.read(ReleaseFile, path)
    if document.schema != 1:
        raise BadInputError(
            f"{path}: schema {document.schema} is not known", hint="upgrade edgekit"
        )
    release = validate_release(document.release)
    return release, [oci.LayoutReader(path.parent / folder) for folder in document.layouts]


def holding(layouts: Sequence[oci.LayoutReader], digest: str) -> oci.LayoutReader:
    """The layout that holds the manifest ``digest``.

    Raises:
        BadInputError: none does.
    """
    for layout in layouts:
        if layout.blob_path(digest).is_file():
            return layout
    folders = ", ".join(str(layout.root) for layout in layouts)
    raise BadInputError(
        f"bundle {digest}: not in {folders or 'any folder'}",
        hint="was the build folder moved or built again? create the release again",
    )
