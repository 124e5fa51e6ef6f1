"""Delta: how to make the files of one bundle from those of another, as an OCI artifact.

A delta *refers to* the bundle it leads to (``subject``; distribution-spec v1.1, *Listing
Referrers*), so it can be added after a release was published and changes none of its digests. Its
annotation `BASE` names the bundle a device must hold. Each layer is one patch; its annotations say
from which blob to which.

None of this needs to be trusted: what a patch yields is compared with the digest that the bundle's
own manifest gives. A wrong delta costs a download, never a wrong model.
"""

from __future__ import annotations

import msgspec

from edgekit.contracts import digest, oci
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.limits import DELTA_BLOCK_BYTES_MAX, DELTA_REACH_BYTES_MAX
from edgekit.contracts.oci import Descriptor, Manifest

ARTIFACT_TYPE = "application/vnd.edgekit.delta.v1"
PATCH_MEDIA_TYPE = "application/vnd.edgekit.delta.patch.v1+zstd"
BASE = "edgekit.delta.base"  # of the manifest: digest of the bundle the device holds
FROM = "edgekit.delta.from"  # of a layer: digest of the blob the device holds
TO = "edgekit.delta.to"  # of a layer: digest of the blob it yields
BLOCK = "edgekit.delta.block"  # of a layer: bytes of the result in each zstd frame
REACH = "edgekit.delta.reach"  # of a layer: bytes of the old file on either side of a block


class Span(msgspec.Struct, frozen=True):
    """One frame of a patch: it yields ``size`` bytes, knowing ``[start, end)`` of the old file."""

    size: int
    start: int
    end: int


class Patch(msgspec.Struct, frozen=True):
    """How to make one blob from another."""

    blob: Descriptor  # the patch itself
    base: str
    result: str
    block: int
    reach: int


def spans(old_size: int, new_size: int, block: int, reach: int) -> list[Span]:
    """The frames of a patch between files of these sizes, in order."""
    found = []
    for start in range(0, new_size, block):
        size = min(block, new_size - start)
        low = max(0, start - reach)
        high = min(old_size, start + size + reach)
        found.append(Span(size, min(low, high), high))
    return found


def describe(blob: Descriptor, base: str, result: str, block: int, reach: int) -> Descriptor:
    """The layer of a patch."""
    told = {FROM: base, TO: result, BLOCK: str(block), REACH: str(reach)}
    return msgspec.structs.replace(blob, annotations=told)


def compose(base: str, subject: Descriptor, layers: tuple[Descriptor, ...]) -> Manifest:
    """The manifest of a delta; without layers it says that whole files are the shorter way."""
    return Manifest(
        artifact_type=ARTIFACT_TYPE,
        config=oci.EMPTY,
        layers=layers or (oci.EMPTY,),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations={BASE: base},
    )


def read(manifest: Manifest, base: str, subject: str) -> dict[str, Patch]:
    """The patches of a delta, by the digest of what they yield.

    Raises:
        BadInputError: not the delta from ``base`` to ``subject``, or bounds that a device with
            little memory must refuse.
    """
    named = manifest.subject.digest if isinstance(manifest.subject, Descriptor) else None
    found = (manifest.artifact_type, manifest.annotations.get(BASE), named)
    if found != (ARTIFACT_TYPE, base, subject):
        raise BadInputError(f"delta: {found} is not from {base} to {subject}")
    patches = [_patch(layer) for layer in manifest.layers if layer.media_type == PATCH_MEDIA_TYPE]
    return {patch.result: patch for patch in patches}


def _patch(layer: Descriptor) -> Patch:
    told = layer.annotations
    try:
        block, reach = int(told[BLOCK]), int(told[REACH])
        patch = Patch(layer, digest.parse(told[FROM]), digest.parse(told[TO]), block, reach)
    except (KeyError, ValueError) as exc:
        raise BadInputError(f"delta: patch {digest.short(layer.digest)}: {exc!r}") from exc
    if not (0 < block <= DELTA_BLOCK_BYTES_MAX and 0 <= reach <= DELTA_REACH_BYTES_MAX):
        raise BadInputError(f"delta: block {block} or reach {reach} is out of bounds")
    return patch
