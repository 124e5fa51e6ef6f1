"""``edgekit targets``: the target profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts.errors import UsageError

if TYPE_CHECKING:
    from edgekit.build.cache import Cache
    from edgekit.build.target import TargetProfile

app = typer.Typer(no_args_is_help=True, help="Look at the target profiles, and emulate them.")


@app.command("list")
def list_targets(*, json: JsonOption = False) -> None:
    """List the target profiles, and what this machine can validate natively."""
    with output.needs("build"):
        from edgekit.build import host, target
    profiles, here = target.known(), host.detect()
    if json:
        output.emit_json(list(profiles.values()))
        return
    rows = [
        [
            profile.name,
            profile.arch.value,
            " ".join(profile.isa),
            " ".join(gate.value for gate in profile.gates),
            here.validation(profile).value,
            profile.description,
        ]
        for profile in profiles.values()
    ]
    header = ["TARGET", "ARCH", "NEEDS", "GATES", "VALIDATED HERE", "DESCRIPTION"]
    output.emit(output.table(header, rows))


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a profile, or a file ending in .toml.")],
    *,
    json: JsonOption = False,
) -> None:
    """Show one target profile."""
    with output.needs("build"):
        import msgspec

        from edgekit.build import target
    profile = target.find(name)
    if json:
        output.emit_json(profile)
        return
    fields = msgspec.to_builtins(profile)
    rows = [[key, ", ".join(v) if isinstance(v, list) else str(v)] for key, v in fields.items()]
    output.emit(output.table(["FIELD", "VALUE"], rows))


@app.command("emulator")
def emulator(
    name: Annotated[str, typer.Argument(help="Name of a profile, or a file ending in .toml.")],
    *,
    base: Annotated[
        str | None,
        typer.Option(help="Make its root from an image: OCI layout or HOST/REPOSITORY@sha256:…."),
    ] = None,
    base_rootfs: Annotated[
        Path | None, typer.Option(help="Make its root from a root file system (tar) instead.")
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option(help="Wheels to use and keep, by platform; default: the cache.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Step cache; $EDGEKIT_CACHE or the home folder's.")
    ] = None,
) -> None:
    """Try the emulator that `edgekit build --emulate` runs this target's variants with.

    Another architecture than this machine's needs a root file system with Python and a device's
    packages. --base or --base-rootfs, as `edgekit image build` takes them, makes one in the cache,
    or in the folder that $EDGEKIT_EMULATOR_ROOT names; no root's rights are needed.
    """
    if base is not None and base_rootfs is not None:
        raise UsageError(
            "--base and --base-rootfs are two ways to say what the root is made of",
            hint="give one of them",
        )
    with output.needs("build"):
        from edgekit.build import emulate, host, target
        from edgekit.build.cache import Cache
    profile, here, steps = target.emulating(target.find(name)), host.detect(), Cache(cache)
    if base is not None or base_rootfs is not None:
        if not emulate.needs_root(profile, here):
            raise UsageError(
                f"{profile.name} is {here.arch}, as this machine: its own Python is emulated",
                hint="leave --base and --base-rootfs away",
            )
        _make_root(profile, base, base_rootfs, wheels, steps)
    found = emulate.find(profile, here, steps.root)
    with steps.scratch() as work:
        emulate.check(found, profile, work)
    output.emit(f"ok  {found.facts}")


def _make_root(
    profile: TargetProfile,
    image_base: str | None,
    root: Path | None,
    wheels: Path | None,
    steps: Cache,
) -> None:
    from edgekit.build import emulate
    from edgekit.package import emulator as roots
    from edgekit.package import image, oci_base

    folder = wheels or steps.root / "wheels"
    if root is not None:
        found = image.Builder(steps, folder, epoch=0, on_step=output.note).rootfs(root)
    else:
        assert image_base is not None
        found = oci_base.opened(image_base, roots.ARCHES[profile.arch], steps, output.note)
    out = emulate.root_folder(profile, steps.root)
    output.note(f"unpacking it, and a device's packages, into {out}")
    roots.make(found, profile, folder, out)
