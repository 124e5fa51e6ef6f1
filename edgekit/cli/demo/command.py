"""``edgekit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.contracts import codec
from edgekit.contracts.errors import EdgekitError, translate_os_errors


class ClaimFailedError(EdgekitError):
    """A claim of the demo does not hold."""

    exit_code = 4


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for everything the run leaves.")] = Path(
        "demo-out"
    ),
    report: Annotated[Path, typer.Option(help="Machine-readable report.")] = Path(
        "demo-report.json"
    ),
    broker: Annotated[
        str, typer.Option(help="auto (mosquitto when on PATH, else iotcore), mosquitto or iotcore.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Order in which clients send samples.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the fleet and its page up.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read an earlier run's traces again; run nothing."),
    ] = False,
) -> None:
    """Run the main job end to end: build, roll out, break things, catch a bad release."""
    with output.needs("demo"):
        from edgekit.cli.demo import evidence, story, summary
        from edgekit.cli.demo.report import Report

    def write(result: Report) -> None:
        with translate_os_errors("write", report):
            report.write_bytes(codec.encode_pretty(result))
        for line in summary.lines(result):
            output.emit(line)
        output.emit(f"report: {report}")

    if verify:
        result = evidence.verify(out, report)
    else:
        options = story.Options(out=out.resolve(), broker=broker, seed=seed, keep=keep)
        result = story.tell(options, write)
    if not result.ok:
        raise ClaimFailedError(
            f"{len(result.problems)} of the demo's claims do not hold: {result.problems[0]}",
            hint=f"see {report} and the logs in {out / 'logs'}",
        )
    if verify:
        output.emit("ok: every claim of the report holds")
