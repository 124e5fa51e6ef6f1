"""Bundle writer: one OCI artifact per variant (DESIGN 5).

The config blob is the `BundleManifest`, each file is one layer, and the index tags the manifest
``MODEL-VERSION-TARGET``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekit.build.ports import AlteredError, BundleContent, BundleHead, WrittenBundle
from edgekit.contracts import codec
from edgekit.contracts.bundle import (
    ARTIFACT_TYPE,
    CONFIG_MEDIA_TYPE,
    FILE_PATH,
    BundleFile,
    BundleManifest,
    Role,
    media_type,
    validate,
)
from edgekit.contracts.oci import TITLE, Descriptor, Manifest
from edgekit.package import evidence, licences
from edgekit.package.layout import LayoutTransaction, transaction


def tag_of(model: str, version: str, target: str) -> str:
    """The reference a bundle is tagged with."""
    return f"{model}-{version}-{target}"


def _store(change: LayoutTransaction, content: BundleContent) -> Descriptor:
    stored = change.put(content.source, media_type(content.role))
    if isinstance(content.source, Path) and content.sha256 not in {None, stored.digest}:
        raise AlteredError(content.source)
    named = {TITLE: content.path, FILE_PATH: content.path}
    return msgspec.structs.replace(stored, annotations=named)


def _entry(content: BundleContent, layer: Descriptor) -> BundleFile:
    return BundleFile(
        path=content.path, role=content.role.value, sha256=layer.digest, size=layer.size
    )


def _content(files: Sequence[BundleContent], role: Role) -> bytes | None:
    found = next((content.source for content in files if content.role is role), None)
    return found.read_bytes() if isinstance(found, Path) else found


def _documents(
    head: BundleHead, files: Sequence[BundleContent], entries: Sequence[BundleFile]
) -> list[BundleContent]:
    """SBOM and provenance of a bundle that carries its build's evidence; none without."""
    raw = _content(files, Role.EVIDENCE)
    if raw is None:
        return []
    record = codec.decode(dict[str, Any], raw, what="evidence")
    card = _content(files, Role.CARD) or b""
    document = evidence.sbom(
        head,
        entries,
        record,
        licence=licences.of_card(card.decode(errors="replace")),
        tool_licences=licences.of_installed(evidence.tools_of(record)),
    )
    sbom = codec.encode_pretty(document)
    statement = codec.encode(evidence.provenance(head, entries, record))
    return [
        BundleContent("sbom.cdx.json", Role.SBOM, sbom),
        BundleContent("provenance.intoto.json", Role.PROVENANCE, statement),
    ]


class OciBundleWriter:
    """`edgekit.build.ports.BundleWriter` on OCI layout folders."""

    def write(
        self, layout: Path, head: BundleHead, files: Sequence[BundleContent]
    ) -> WrittenBundle:
        """See `BundleWriter.write`."""
        with transaction(layout) as change:
            layers = [_store(change, content) for content in files]
            entries = [_entry(content, layer) for content, layer in zip(files, layers, strict=True)]
            for content in _documents(head, files, entries):
                layers.append(_store(change, content))
                entries.append(_entry(content, layers[-1]))
            manifest = validate(
                BundleManifest(
                    model=head.model,
                    version=head.version,
                    target=head.target,
                    precision=head.precision,
                    engine=head.engine,
                    engine_versions=head.engine_versions,
                    labels=head.labels,
                    engine_options=dict(head.engine_options),
                    files=tuple(entries),
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
