"""Release: one name and version for the variants of a model, as the fleet manager knows it."""

from __future__ import annotations

import msgspec

from edgekit.contracts import composition, digest
from edgekit.contracts.composition import Link
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.ids import check_name
from edgekit.contracts.messages import VariantRef

SCHEMA = 1


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """``variants`` maps a target profile's name to the bundle built for it."""

    schema: int = SCHEMA
    name: str  # e.g. "meter-v2"; unique in a fleet, immutable once published
    model: str
    version: str
    variants: dict[str, VariantRef]
    notes: str = ""
    compose: tuple[Link, ...] = ()  # inputs that are outputs of other models on the device


def validate(release: Release) -> Release:
    """Return ``release`` when it can be published.

    Raises:
        BadInputError: unknown schema, bad name, no variants or a malformed digest.
    """
    if release.schema != SCHEMA:
        raise BadInputError(
            f"release {release.name}: schema {release.schema} is not known", hint="upgrade edgekit"
        )
    check_name(release.name, "release")
    check_name(release.model, "model")
    composition.check_links(release.model, release.compose)
    if release.compose and any(variant.image for variant in release.variants.values()):
        raise BadInputError(
            f"release {release.name}: has both --compose and images",
            hint="a container cannot ask other models: release bundles",
        )
    if not release.variants:
        raise BadInputError(f"release {release.name}: has no variants")
    for target, variant in release.variants.items():
        check_name(target, "target")
        check_name(variant.repository, "repository")
        digest.parse(variant.digest)
        if variant.size <= 0:
            raise BadInputError(f"release {release.name}: {target}: size {variant.size}")
        if variant.image is not None:
            check_name(variant.image.repository, "repository")
            digest.parse(variant.image.digest)
            if variant.image.size <= 0:
                raise BadInputError(
                    f"release {release.name}: {target}: image size {variant.image.size}"
                )
    return release
