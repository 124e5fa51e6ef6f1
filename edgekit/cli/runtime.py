"""``edgekit runtime``: the agent and its engines for a platform, as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts import digest
from edgekit.contracts.errors import UsageError
from edgekit.contracts.runtime import ARCHES, REPOSITORY, tag_of

if TYPE_CHECKING:
    from edgekit.package.runtime import VerifiedRuntime

app = typer.Typer(
    no_args_is_help=True, help="Package the agent and its engines; look at such runtimes."
)
LayoutArgument = Annotated[
    str, typer.Argument(metavar="LAYOUT[@REF]", help="OCI layout folder, @ a tag or a digest.")
]


@app.command()
def build(
    arch: Annotated[str, typer.Option(help="Architecture: amd64 or arm64.")],
    *,
    python: Annotated[str, typer.Option(help="Python of the devices.")] = "3.11",
    glibc: Annotated[str, typer.Option(help="Oldest glibc of the devices.")] = "2.36",
    package: Annotated[
        list[str] | None, typer.Option(help="Further package, NAME==VERSION; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="OCI layout folder to write to.")] = Path("runtimes"),
    wheels: Annotated[
        Path | None, typer.Option(help="Wheels to use and keep; default: the cache.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the agent with its engines for one platform, tagged ARCH-cpPYTHON.

    Nothing of a wheel is run, so any platform can be built anywhere. Defaults are those of Debian
    12 and Raspberry Pi OS 12.
    """
    if arch not in ARCHES:
        raise UsageError(f"--arch {arch!r} is none of {', '.join(ARCHES)}")
    with output.needs("build"):
        from edgekit.build.cache import Cache
        from edgekit.package import runtime
    platform = runtime.facts(arch, python, glibc)
    folder = wheels or Cache(None).root / "wheels" / f"{arch}-glibc{glibc}-{tag_of('cp', python)}"
    found = runtime.build(platform, folder, out, more=package or ())
    _show([found], json=json)


@app.command()
def inspect(layout: LayoutArgument, *, json: JsonOption = False) -> None:
    """Show what runtimes are made of, verifying every blob; exit code 3 on damage."""
    _show(_find(layout), json=json)


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="A layout folder, or an unpacked runtimes/<digest>.")
    ],
) -> None:
    """Re-read every file and compare it with its digest; exit code 3 on damage."""
    from edgekit.contracts.device import bootstrap
    from edgekit.contracts.errors import BadInputError

    if (folder / "oci-layout").exists():
        for each in _find(str(folder)):
            output.emit(f"ok  {each.digest}  {each.size} bytes")
        return
    try:
        output.emit(f"ok  {folder}  {bootstrap.verify(folder)} files")
    except bootstrap.BootstrapError as exc:
        raise BadInputError(str(exc)) from exc


@app.command()
def unpack(
    layout: LayoutArgument,
    *,
    out: Annotated[Path, typer.Option(help="Folder of runtimes; it gets one named by digest.")],
) -> None:
    """Lay out a runtime as a device does, OUT/<digest>/; all or nothing."""
    found = _find(layout)
    if len(found) != 1:
        raise UsageError(f"{layout} holds {len(found)} runtimes", hint="name one: LAYOUT@TAG")
    from edgekit.package import runtime

    folder = runtime.unpack(found[0], out)
    output.emit(str(folder))
    output.note(f"python{found[0].manifest.python} {folder}/agent.py --version")


@app.command()
def publish(
    layout: LayoutArgument,
    manager: Annotated[
        str | None, typer.Option("--manager", help="Manager's URL [env EDGEKIT_MANAGER].")
    ] = None,
) -> None:
    """Hand runtimes to a manager, which gives them to devices that join."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        for each in _find(layout):
            tag = tag_of(each.manifest.arch, each.manifest.python)
            client.push(each.reader, REPOSITORY, each.digest, [each.digest, tag])
            output.emit(f"{REPOSITORY}:{tag}  {each.digest}")


@app.command()
def export(
    layout: LayoutArgument,
    *,
    broker: Annotated[str, typer.Option(help="MQTT broker as devices reach it, HOST:PORT.")],
    out: Annotated[Path, typer.Option(help="New folder, e.g. on a stick.")],
    tenant: Annotated[str, typer.Option(help="Tenant of the devices.")] = "default",
) -> None:
    """Write a folder from which devices install themselves offline: `sh FOLDER/install.sh`."""
    from edgekit.contracts.ids import check_name

    with output.needs("fleet"):
        from edgekit_fleet.config import parse_host_port
    address = parse_host_port(broker, port_default=1883, what="--broker")
    check_name(tenant, "tenant")
    found = _find(layout)
    from edgekit.package import export as exporting

    site = exporting.write(found, out, tenant=tenant, host=address.host, port=address.port)
    output.emit(f"{out}  {', '.join(sorted(site.runtimes))}")
    output.note(f"on a device: sudo sh {out.name}/install.sh --device NAME")


def _find(layout: str) -> list[VerifiedRuntime]:
    with output.needs("build"):
        from edgekit.package import reader, runtime
    return runtime.find_all(*reader.split_reference(layout))


def _show(found: list[VerifiedRuntime], *, json: bool) -> None:
    if json:
        output.emit_json(
            [{"digest": e.digest, "bytes": e.size, "manifest": e.manifest} for e in found]
        )
        return
    for each in found:
        manifest = each.manifest
        engines = ", ".join(f"{name} {version}" for name, version in manifest.engines.items())
        output.emit(f"{tag_of(manifest.arch, manifest.python)}  {each.digest}")
        output.emit(f"agent      {manifest.version}, engines: {engines or 'none'}")
        output.emit(
            f"platform   {manifest.arch}, Python {manifest.python}, glibc {manifest.glibc}+"
        )
        output.emit(f"size       {each.size / 1e6:.1f} MB in {len(manifest.files)} files")
        rows = [[f.path, f"{f.size / 1e6:.2f}", digest.short(f.sha256)] for f in manifest.files]
        output.emit(output.table(["FILE", "MB", "SHA-256"], rows))
    if not found:
        output.emit("no runtimes")
