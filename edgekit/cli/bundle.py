"""``edgekit bundle``: look at bundles, verify, unpack and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts import digest

if TYPE_CHECKING:
    from edgekit.package.reader import VerifiedBundle

app = typer.Typer(no_args_is_help=True, help="Look at bundles; verify, unpack and compare them.")
LayoutArgument = Annotated[
    str, typer.Argument(metavar="LAYOUT[@REF]", help="OCI layout folder, @ a tag or a digest.")
]


@app.command("inspect")
def inspect(layout: LayoutArgument, *, json: JsonOption = False) -> None:
    """Show manifest, files and verdicts of bundles, verifying every blob.

    Without a reference, all bundles of the layout are shown. A damaged blob ends with exit code 3.
    """
    with output.needs("build"):
        from edgekit.package import reader
    found = reader.find_all(layout)
    if json:
        output.emit_json(
            [
                {
                    "digest": each.digest,
                    "tag": each.tag,
                    "manifest": each.manifest,
                    "evidence": each.evidence(),
                }
                for each in found
            ]
        )
    else:
        output.emit("\n\n".join(_describe(each) for each in found) or "no bundles")


@app.command()
def verify(layout: LayoutArgument, *, json: JsonOption = False) -> None:
    """Re-read every blob of the bundles and compare it with its digest; exit code 3 on damage."""
    with output.needs("build"):
        from edgekit.package import reader
    found = reader.find_all(layout)
    if json:
        output.emit_json([{"digest": e.digest, "tag": e.tag, "bytes": e.size} for e in found])
        return
    for each in found:
        output.emit(f"ok  {each.digest}  {each.tag or 'untagged'}  {each.size} bytes")
    if not found:
        output.emit("no bundles")


@app.command()
def unpack(
    layout: LayoutArgument,
    *,
    out: Annotated[Path, typer.Option(help="New folder for the bundle's files.")],
) -> None:
    """Write a bundle's files and its manifest, bundle.json, into a new folder; all or nothing."""
    with output.needs("build"):
        from edgekit.package import reader
    found = reader.find(layout)
    reader.unpack(found, out)
    output.emit(f"{out}  {len(found.manifest.files)} files of {found.digest}")


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD[@REF]", help="What a device holds.")],
    new: Annotated[str, typer.Argument(metavar="NEW[@REF]", help="What it is to run.")],
    *,
    json: JsonOption = False,
) -> None:
    """Say which files two bundles share, which changed, and how many bytes have to travel."""
    with output.needs("build"):
        from edgekit.package import diff as rules
        from edgekit.package import reader
    before, after = reader.find(old), reader.find(new)
    found = rules.compare(before.manifest, after.manifest, before.descriptors, after.descriptors)
    if json:
        output.emit_json(found)
        return
    rows = [
        [each.change.value, each.path, each.role, _size(each.old_bytes), _size(each.new_bytes)]
        for each in found.files
    ]
    output.emit(output.table(["CHANGE", "FILE", "ROLE", "OLD BYTES", "NEW BYTES"], rows))
    output.emit(
        f"to transfer {found.transfer_bytes} of {found.total_bytes} bytes, "
        f"{found.shared_bytes} shared (manifest and config included)"
    )


@app.command()
def delta(
    old: Annotated[str, typer.Argument(metavar="OLD[@REF]", help="What devices hold.")],
    new: Annotated[str, typer.Argument(metavar="NEW[@REF]", help="What they are to run.")],
    *,
    out: Annotated[Path, typer.Option(help="OCI layout folder to write to; may be NEW's.")],
    tag: Annotated[str | None, typer.Option(help="Reference of the delta there.")] = None,
    json: JsonOption = False,
) -> None:
    """Write patches of the files that changed, where they are shorter than the files.

    `edgekit release publish` does this for the versions in the field. A delta is an OCI artifact
    that refers to NEW: push it into the same repository of any registry.
    """
    with output.needs("delta"):
        from edgekit.cli import deltas
        from edgekit.package import delta as making
        from edgekit.package import reader
    before, after = reader.find(old), reader.find(new)
    name = tag or f"delta-{digest.short(before.digest)}-{digest.short(after.digest)}"
    found = making.make(before, after, out, tag=name)
    if json:
        output.emit_json(found)
        return
    rows = [[f.path, str(f.full_bytes), _size(f.patch_bytes)] for f in found.files]
    output.emit(output.table(["CHANGED FILE", "BYTES", "PATCH BYTES"], rows))
    output.emit(f"{out}@{name}  {found.digest}")
    output.emit(deltas.sentence(found))


def _size(size: int | None) -> str:
    return "-" if size is None else str(size)


def _describe(found: VerifiedBundle) -> str:
    manifest, evidence = found.manifest, found.evidence()
    lines = [
        f"{found.tag or 'untagged'}  {found.digest}",
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
