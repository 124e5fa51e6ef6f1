"""``edgekit doctor``: does what the system needs work here? Every check does the real thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import output
from edgekit.contracts.errors import UnavailableError


def doctor(
    manager: Annotated[
        str | None, typer.Option("--manager", help="Manager's URL [env EDGEKIT_MANAGER].")
    ] = None,
    broker: Annotated[str, typer.Option(help="MQTT broker, HOST:PORT.")] = "127.0.0.1:1883",
    data_dir: Annotated[Path, typer.Option(help="Folder that must be writable.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine, a broker and a manager.

    Exit code 5 when something failed; warnings alone do not fail.
    """
    from edgekit.cli import checks

    found = list(checks.run_all(manager=manager, broker=broker, data_dir=data_dir))
    if as_json:
        output.emit_json(found)
    else:
        for check in found:
            output.emit(f"{check.status.value:4}  {check.name}: {check.detail}")
            if check.mend:
                output.emit(f"      mend: {check.mend}")
    failed = [check.name for check in found if check.status is checks.Status.FAIL]
    if failed:
        raise UnavailableError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")
