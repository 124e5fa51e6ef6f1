"""Bundle writer: one OCI artifact per variant (DESIGN 5).

The config blob is the `BundleManifest`, each file is one layer, and the index tags the manifest
``MODEL-VERSION-TARGET``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.build.ports import BundleContent, BundleHead, WrittenBundle
from edgekit.contracts import codec
from edgekit.contracts.bundle import (
    ARTIFACT_TYPE,
    CONFIG_MEDIA_TYPE,
    FILE_PATH,
    BundleFile,
    BundleManifest,
    media_type,
    validate,
)
from edgekit.contracts.oci import TITLE, Descriptor, Manifest
from edgekit.package.layout import transaction


def tag_of(model: str, version: str, target: str) -> str:
    """The reference a bundle is tagged with."""
    return f"{model}-{version}-{target}"


class OciBundleWriter:
    """`edgekit.build.ports.BundleWriter` on OCI layout folders."""

    def write(
        self, layout: Path, head: BundleHead, files: Sequence[BundleContent]
    ) -> WrittenBundle:
        """See `BundleWriter.write`."""
        with transaction(layout) as change:
            layers: list[Descriptor] = []
            for content in files:
                stored = change.put(content.source, media_type(content.role))
                named = {TITLE: content.path, FILE_PATH: content.path}
                layers.append(msgspec.structs.replace(stored, annotations=named))
            manifest = validate(
                BundleManifest(
                    model=head.model,
                    version=head.version,
                    target=head.target,
                    precision=head.precision,
                    engine=head.engine,
                    engine_versions=head.engine_versions,
                    labels=head.labels,
                    files=tuple(
                        BundleFile(
                            path=content.path,
                            role=content.role.value,
                            sha256=layer.digest,
                            size=layer.size,
                        )
                        for content, layer in zip(files, layers, strict=True)
                    ),
                )
            )
            config = change.put(codec.encode(manifest), CONFIG_MEDIA_TYPE)
            entry = change.tag(
                Manifest(artifact_type=ARTIFACT_TYPE, config=config, layers=tuple(layers)),
                tag_of(head.model, head.version, head.target),
            )
        size = entry.size + config.size + sum(layer.size for layer in layers)
        return WrittenBundle(entry.digest, size)

    def withdraw(self, layout: Path, model: str, version: str, target: str) -> None:
        """See `BundleWriter.withdraw`."""
        if (layout / "index.json").is_file():
            with transaction(layout) as change:
                change.untag(tag_of(model, version, target))


def write_bundle(layout: Path, head: BundleHead, files: Sequence[BundleContent]) -> WrittenBundle:
    """Write one bundle into ``layout``; see `OciBundleWriter.write`."""
    return OciBundleWriter().write(layout, head, files)
