"""The ``edgekit`` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgekit import __version__
from edgekit.cli import (
    broker,
    bundle,
    dataset,
    fleet,
    image,
    model,
    output,
    release,
    runtime,
    targets,
    transfer,
)
from edgekit.cli.build import build
from edgekit.cli.demo.command import demo
from edgekit.cli.doctor import doctor
from edgekit.cli.explain import explain
from edgekit.cli.infer import infer
from edgekit.contracts.errors import UsageError

app = typer.Typer(
    name="edgekit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize, prove, roll out and watch ML models on device fleets.",
)
app.add_typer(model.app, name="model")
app.add_typer(dataset.app, name="dataset")
app.add_typer(targets.app, name="targets")
app.command()(build)
app.command()(explain)
app.command()(infer)
app.command()(bundle.inspect)
app.add_typer(bundle.app, name="bundle")
app.add_typer(image.app, name="image")
app.command()(transfer.push)
app.command()(transfer.pull)
app.add_typer(release.app, name="release")
app.add_typer(runtime.app, name="runtime")
app.add_typer(fleet.app, name="fleet")
app.add_typer(broker.app, name="broker")
app.command()(doctor)
app.command()(demo)


def _version(value: bool) -> None:
    if value:
        output.emit(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if sys.version_info < (3, 11):
        raise UsageError(
            "the edgekit command needs Python 3.11 or newer",
            hint="on a JetPack 6 device use edgekit-agent, which runs on 3.10",
        )


def main() -> None:
    """Entry point of the console script."""
    output.run(app)
