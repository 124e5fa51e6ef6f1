"""``edgekit dataset``: store data sets by content and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption, RegistryOption

app = typer.Typer(no_args_is_help=True, help="Store data sets by content and look at them.")


@app.command("add")
def add(
    source: Annotated[Path, typer.Argument(help=".npz, folder of .npy files, or .csv.")],
    *,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Store a data set; prints the digest that names it."""
    with output.needs("build"):
        from edgekit.registry import dataset
        from edgekit.registry.local import LocalRegistry
        from edgekit.registry.register import store_dataset
    stored = store_dataset(LocalRegistry(registry), dataset.load(source), source.name)
    if json:
        output.emit_json(stored)
    else:
        output.emit(stored.digest)


@app.command("list")
def list_datasets(*, registry: RegistryOption = None, json: JsonOption = False) -> None:
    """List all stored data sets."""
    with output.needs("build"):
        from edgekit.registry.local import LocalRegistry
    found = LocalRegistry(registry).datasets()
    if json:
        output.emit_json(found)
        return
    rows = [[info.digest, str(info.n), info.source] for info in found]
    output.emit(output.table(["DIGEST", "SAMPLES", "SOURCE"], rows))


@app.command("show")
def show(
    digest: Annotated[str, typer.Argument(help="Digest or its beginning.")],
    *,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Show one stored data set."""
    with output.needs("build"):
        from edgekit.registry.local import LocalRegistry
    info = LocalRegistry(registry).dataset(digest)
    if json:
        output.emit_json(info)
        return
    lines = [info.digest, f"samples  {info.n}", f"source   {info.source}"]
    lines += [f"array    {name}  {shape}" for name, shape in sorted(info.arrays.items())]
    output.emit("\n".join(lines))
