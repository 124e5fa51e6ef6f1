"""The ``edgekit-agent`` command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgekit import __version__
from edgekit.contracts.errors import GateFailedError, UnavailableError
from edgekit.contracts.verdict import Outcome
from edgekit_runtime import config as configuration
from edgekit_runtime import console

app = typer.Typer(
    name="edgekit-agent",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run models on this device, offline, and report to the fleet manager.",
)
ConfigOption = Annotated[
    Path, typer.Option("--config", help="Agent configuration (TOML); EDGEKIT_* override it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(value: bool) -> None:
    if value:
        console.emit(f"edgekit-agent {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
def run(config: ConfigOption) -> None:
    """Serve inference and follow the desired state until SIGTERM."""
    from edgekit_runtime import running  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(running.run(config))


@app.command()
def status(config: ConfigOption, json: JsonOption = False) -> None:
    """Show the device's state from its state folder; the agent need not run."""
    from edgekit_runtime import status as reading  # noqa: PLC0415 - numpy is slow to import

    found = reading.read(configuration.load(config, os.environ))
    if json:
        console.emit_json(found)
    else:
        console.emit(reading.describe(found))


@app.command()
def selftest(config: ConfigOption, json: JsonOption = False) -> None:
    """Replay the golden set of every bundle this device serves or could go back to."""
    from edgekit_runtime import selftest as testing  # noqa: PLC0415 - loads the engine

    result = testing.run(configuration.load(config, os.environ))
    if json:
        console.emit_json(result)
    else:
        for name, verdict in result.verdicts.items():
            console.emit(f"{verdict.outcome.value}  {name}: {verdict.reason}")
        if not result.verdicts:
            console.emit("nothing is deployed on this device")
    if result.outcome is not Outcome.PASS:
        raise GateFailedError("self-test failed", hint="the failing bundles are listed on stdout")


@app.command()
def infer(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BUNDLE", help="A deployed model (with --config), or LAYOUT[@REF]."
        ),
    ],
    *,
    data: Annotated[
        Path, typer.Option("--in", help=".npz, a folder of .npy (one for each input), or .csv.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Outputs by name (.npz).")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Agent configuration: where models lie.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Rows answered at a time; default: about 8 MB.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads the engine may use.")] = 1,
    refused_max: Annotated[
        int, typer.Option(min=0, help="Rows that may break the contract; more: exit code 3.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Answer every row of a file; the agent need not run, and nothing is counted.

    An interrupted run goes on where it was when the same command is given again.
    """
    from edgekit_runtime import chosen, offline  # noqa: PLC0415 - loads the engine

    run = offline.BatchRun(chosen.load(model, config, threads), data, out, chunk=chunk)
    summary = run.run(offline.Progress(console.note))
    if json:
        console.emit_json(summary)
    else:
        if summary.resumed:
            console.note(f"{summary.resumed} samples were answered by an earlier run")
        console.emit(offline.describe(summary, out))
    offline.check_refused(summary, refused_max)


@app.command()
def slots(config: ConfigOption, json: JsonOption = False) -> None:
    """Show every bundle this device holds or refuses, what it is to its model, and why."""
    from edgekit_runtime import slots as reading  # noqa: PLC0415 - numpy is slow to import

    found = reading.read(configuration.load(config, os.environ))
    if json:
        console.emit_json(found)
    else:
        console.emit(reading.describe(found))


@app.command()
def logs(
    config: ConfigOption,
    lines: Annotated[int, typer.Option("--lines", min=1, help="Newest entries to show.")] = 200,
    json: JsonOption = False,
) -> None:
    """Show the agent's own log and the audit records that still wait in the spool."""
    from edgekit_runtime import logs as reading  # noqa: PLC0415 - numpy is slow to import

    found = reading.read(configuration.load(config, os.environ), lines=lines)
    if json:
        console.emit_json(found)
    else:
        console.emit(reading.describe(found))


@app.command()
def doctor(config: ConfigOption, json: JsonOption = False) -> None:
    """Say in plain words what is wrong with this device, and how to mend it.

    Exit code 5 when something is broken; warnings alone do not fail.
    """
    from edgekit_runtime import doctor as examining  # noqa: PLC0415 - only this command needs it
    from edgekit_runtime.doctor.check import Status  # noqa: PLC0415

    found = []
    for check in examining.run(configuration.load(config, os.environ)):
        found.append(check)
        if not json:
            console.emit(examining.describe(check))
    if json:
        console.emit_json(found)
    failed = [check.name for check in found if check.status is Status.FAIL]
    if failed:
        raise UnavailableError(
            f"{len(failed)} of {len(found)} checks failed: {', '.join(dict.fromkeys(failed))}",
            hint="each failed line on stdout says how to mend it",
        )


def main() -> None:
    """Entry point of the console script."""
    console.run(app)


if __name__ == "__main__":
    main()
