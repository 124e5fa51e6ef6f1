"""The ``edgekit`` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgekit import __version__
from edgekit.cli import output
from edgekit.contracts.errors import UsageError

app = typer.Typer(
    name="edgekit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize, prove, roll out and watch ML models on device fleets.",
)


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
