"""``edgekit targets``: the target profiles."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption

app = typer.Typer(no_args_is_help=True, help="Look at the target profiles.")


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
