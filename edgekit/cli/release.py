"""``edgekit release``: bundle variants into a release and hand it to a manager."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import composing, output, release_file
from edgekit.contracts import codec, digest
from edgekit.contracts.errors import UsageError
from edgekit.contracts.ids import check_name

if TYPE_CHECKING:
    from edgekit.package.transfer import Moved

app = typer.Typer(no_args_is_help=True, help="Create and publish releases.")

Manager = Annotated[
    str | None,
    typer.Option("--manager", help="Manager's URL [env EDGEKIT_MANAGER]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name, unique in the fleet, e.g. meter-v2.")],
    build_out: Annotated[
        list[Path], typer.Option("--from", help="Folder a build wrote; may be repeated.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Layout `edgekit image build` wrote of them; may be repeated."),
    ] = None,
    compose: Annotated[
        list[str] | None,
        typer.Option(help="INPUT=MODEL.OUTPUT: another model feeds this input; may be repeated."),
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Build folder or release file of such a model; repeated."),
    ] = None,
    notes: Annotated[str, typer.Option("--notes", help="What changed, for people.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write [<first folder>/NAME.release.json].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a release of the variants that passed their gates."""
    check_name(name, "release")
    release, layouts = release_file.compose(name, build_out, notes)
    release = composing.with_links(release, layouts, compose or [], with_ or [])
    release, more = release_file.with_images(release, images or [])
    layouts += more
    path = out or build_out[0] / f"{name}{release_file.SUFFIX}"
    release_file.write(path, release, layouts)
    output.note(f"wrote {path}")
    if as_json:
        output.emit_json(release)
        return
    rows = [
        (
            target,
            digest.short(variant.digest),
            f"{variant.size / 1024:.0f} KiB",
            digest.short(variant.image.digest) if variant.image else "-",
        )
        for target, variant in sorted(release.variants.items())
    ]
    output.emit(f"release {name}: {release.model} {release.version}")
    for link in release.compose:
        output.emit(f"  {link.input} = {link.model}.{link.output}")
    output.emit(output.table(("target", "bundle", "size", "image"), rows))


@app.command()
def publish(
    release: Annotated[str, typer.Argument(help="NAME.release.json, or NAME of one here.")],
    manager: Manager = None,
    delta_from: Annotated[
        list[str] | None,
        typer.Option(help="LAYOUT[@REF] of a version devices hold; may be repeated."),
    ] = None,
    no_delta: Annotated[
        bool, typer.Option("--no-delta", help="Make no deltas: devices fetch whole files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Push a release's bundles and images, and announce it.

    Doing it again sends only what is missing. Devices that hold a version fetch what changed: a
    delta is made for the versions that most devices run, as the manager knows them, and for those
    named by --delta-from.
    """
    if no_delta and delta_from:
        raise UsageError("--no-delta and --delta-from contradict each other")
    document, layouts = release_file.read(release_file.find(release))
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with output.needs("delta"):
        from edgekit.cli import deltas
    told = _Told()
    with ManagerClient(manager) as client:
        for number, (target, variant) in enumerate(sorted(document.variants.items()), start=1):
            output.note(f"bundle {number}/{len(document.variants)}: {target}")
            for reference in (variant, variant.image):
                if reference is not None:
                    layout = release_file.holding(layouts, reference.digest)
                    client.push_bundle(layout, reference.repository, reference.digest, told)
        made = []
        if not no_delta:
            made = deltas.publish(client, document, layouts, delta_from or [], told)
        status, answer = client.post("/releases", codec.encode(document))
    output.note(
        f"{told.sent / 1024:.0f} KiB sent, {told.skipped / 1024:.0f} KiB were there already"
    )
    if as_json:
        output.emit_json({**answer, "deltas": made})
        return
    if made:
        output.emit(deltas.table(made))
    word = "published" if status == 201 else "was published already"
    output.emit(f"release {document.name}: {word}")


class _Told:
    """Sums up what moves, and says it."""

    def __init__(self) -> None:
        self.sent = self.skipped = 0

    def __call__(self, blob: Moved) -> None:
        if not blob.transferred:
            self.skipped += blob.size
            return
        self.sent += blob.size
        output.note(f"  sent {digest.short(blob.digest)} ({blob.size / 1024:.0f} KiB)")


@app.command("list")
def list_releases(manager: Manager = None, as_json: Json = False) -> None:
    """List the releases a manager knows."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        found = client.get("/releases")
    if as_json:
        output.emit_json(found)
        return
    rows = [
        (r["name"], r["model"], r["version"], ", ".join(sorted(r["variants"])), r["notes"])
        for r in (entry["release"] for entry in found)
    ]
    output.emit(output.table(("release", "model", "version", "targets", "notes"), rows))
