"""``edgekit inspect``: what is in a bundle, every byte verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts import bundle, codec, digest
from edgekit.contracts.bundle import BundleManifest, Role
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX
from edgekit.contracts.oci import REF_NAME, LayoutReader


def inspect(
    layout: Annotated[
        str, typer.Argument(metavar="LAYOUT[@REF]", help="OCI layout folder, @ a tag or a digest.")
    ],
    *,
    json: JsonOption = False,
) -> None:
    """Show manifest, files and verdicts of bundles, verifying every blob.

    Without a reference, all bundles of the layout are shown. A damaged blob ends with exit code 3.
    """
    folder, _, reference = layout.rpartition("@")
    if not folder or Path(layout).is_dir():
        folder, reference = layout, ""
    reader = LayoutReader(Path(folder))
    if reference:
        wanted = [reader.resolve(reference)]
    else:
        wanted = [entry.digest for entry in reader.index().manifests]
    found = [_read(reader, entry) for entry in wanted]
    if json:
        output.emit_json(found)
    else:
        output.emit("\n\n".join(_describe(entry) for entry in found) or "no bundles")


def _read(reader: LayoutReader, manifest_digest: str) -> dict[str, Any]:
    oci = reader.manifest(manifest_digest)
    what = f"bundle {digest.short(manifest_digest)}"
    if oci.config.media_type != bundle.CONFIG_MEDIA_TYPE:
        raise BadInputError(
            f"{what}: is {oci.config.media_type}, not an edgekit bundle",
            hint="inspect reads what 'edgekit build' wrote",
        )
    for layer in oci.layers:
        reader.verify_blob(layer)
    raw = reader.read_blob(oci.config.digest, bytes_max=DOCUMENT_BYTES_MAX)
    manifest = bundle.validate(codec.decode(BundleManifest, raw, what=what))
    layers = {layer.digest for layer in oci.layers}
    for entry in manifest.files:
        if entry.sha256 not in layers:
            raise BadInputError(f"{what}: file {entry.path} is not a layer of its OCI manifest")
    evidence: dict[str, Any] = {}
    recorded = manifest.file(Role.EVIDENCE)
    if recorded is not None:
        raw = reader.read_blob(recorded.sha256, bytes_max=DOCUMENT_BYTES_MAX)
        evidence = codec.decode(dict[str, Any], raw, what=f"{what}: {recorded.path}")
    tags = [m.annotations.get(REF_NAME) for m in reader.index().manifests]
    digests = [m.digest for m in reader.index().manifests]
    tag = tags[digests.index(manifest_digest)] if manifest_digest in digests else None
    return {"digest": manifest_digest, "tag": tag, "manifest": manifest, "evidence": evidence}


def _describe(found: dict[str, Any]) -> str:
    manifest: BundleManifest = found["manifest"]
    evidence = found["evidence"]
    lines = [
        f"{found['tag'] or 'untagged'}  {found['digest']}",
        f"model      {manifest.model} {manifest.version}, {manifest.precision}",
        f"target     {manifest.target}, validated: {evidence.get('validated', 'not recorded')}",
        f"engine     {manifest.engine} {manifest.engine_versions}",
    ]
    lines += [
        f"file       {f.path}  {f.role}  {f.size} bytes  {digest.short(f.sha256)}"
        for f in manifest.files
    ]
    for gate in evidence.get("gates", []):
        lines.append(f"gate       {gate['metric']} {gate['outcome']}: {gate['reason']}")
    lines.append("verified   every blob matches its digest")
    return "\n".join(lines)
