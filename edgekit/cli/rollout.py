"""``edgekit fleet rollout``: start, watch and abort rollouts."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from edgekit.cli import output
from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, GateFailedError, translate_os_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

app = typer.Typer(no_args_is_help=True, help="Roll releases out in gated waves.")

WATCH_S = 0.5
SUCCEEDED = "succeeded"
_GATE_COLUMNS = (
    *("wave", "gate", "verdict", "estimate", "interval", "limit"),
    *("devices", "inferences", "why"),
)

Manager = Annotated[
    str | None,
    typer.Option("--manager", help="Manager's URL [env EDGEKIT_MANAGER]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Name of the rollout.")]


def read_spec(path: Path) -> bytes:
    """The rollout spec in ``path`` (TOML or JSON) as JSON.

    Raises:
        BadInputError: unreadable or not well-formed; its contents are the manager's to judge.
    """
    with translate_os_errors("read", path):
        raw = path.read_bytes()
    if path.suffix == ".json":
        return codec.encode(codec.decode(object, raw, what=str(path)))
    try:
        return codec.encode(tomllib.loads(raw.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise BadInputError(
            f"{path}: {exc}", hint="a rollout spec is TOML, or JSON in *.json"
        ) from exc


@app.command()
def start(
    spec: Annotated[Path, typer.Argument(help="Rollout spec, TOML or JSON.")],
    manager: Manager = None,
    as_json: Json = False,
) -> None:
    """Start a rollout. Everything in its spec is checked before any device is touched."""
    body = read_spec(spec)
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        _, answer = client.post("/rollouts", body)
    if as_json:
        output.emit_json(answer)
        return
    output.emit(f"rollout {answer['name']}: started, release {answer['release']}")
    output.note(f"watch it: edgekit fleet rollout status {answer['name']} --watch")


@app.command("list")
def list_rollouts(manager: Manager = None, as_json: Json = False) -> None:
    """List rollouts, newest first."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        found = client.get("/rollouts")
    if as_json:
        output.emit_json(found)
        return
    rows = [
        (r["name"], r["release"], r["status"], f"{r['wave'] + 1}/{len(r['waves'])}", r["reason"])
        for r in found
    ]
    output.emit(output.table(("rollout", "release", "status", "wave", "reason"), rows))


@app.command()
def status(
    name: Name,
    manager: Manager = None,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it on stderr until it has ended.")
    ] = False,
) -> None:
    """Show a rollout: waves, gates, reasons.

    Exit code 4 when it was rolled back, 0 otherwise (with --watch: 0 only when it succeeded).
    """
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        rollout = client.rollout(name)
        said: set[str] = set()
        while watch:
            for line in _progress(rollout):
                if line not in said:
                    said.add(line)
                    output.note(line)
            if rollout["terminal"]:
                break
            time.sleep(WATCH_S)
            rollout = client.rollout(name)
    output.emit_json(rollout) if as_json else output.emit(describe(rollout))
    if rollout["terminal"] and rollout["status"] != SUCCEEDED:
        raise GateFailedError(
            f"rollout {name} was {_words(rollout['status'])}: {rollout['reason']}"
        )


@app.command()
def abort(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = (
        "asked for on the command line"
    ),
    manager: Manager = None,
) -> None:
    """Stop a rollout and send every device back to what it ran before."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        path = f"/rollouts/{quote(name, safe='')}/abort"
        client.post(path, codec.encode({"reason": reason}))
    output.emit(f"rollout {name}: rolling back")


def _words(text: str) -> str:
    return text.replace("_", " ")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _verdict_line(verdict: dict[str, Any]) -> str:
    return (
        f"{verdict['metric']}: {verdict['outcome']}, {verdict['reason']} "
        f"[{verdict['n_devices']} devices, {verdict['n']} inferences]"
    )


def _progress(rollout: dict[str, Any]) -> list[str]:
    """Everything worth a line so far; the watcher prints those it has not printed yet."""
    name, lines = rollout["name"], []
    for wave in rollout["waves"]:
        where = f"{name}: wave {wave['name']}"
        if wave["started"]:
            lines.append(f"{where}: installing on {len(wave['devices'])} devices")
        if wave["soak_started"]:
            lines.append(f"{where}: soaking, {len(wave['control'])} devices as control")
        lines += [f"{where}: {_verdict_line(verdict)}" for verdict in wave["verdicts"]]
        if wave["finished"]:
            lines.append(f"{where}: {wave['phase']}")
    ended = rollout["terminal"] or rollout["status"] in ("holding", "rolling_back")
    if ended:
        lines.append(f"{name}: {_words(rollout['status'])}: {rollout['reason']}")
    return lines


def describe(rollout: dict[str, Any]) -> str:
    """A rollout for people."""
    exposed = len(rollout["devices_exposed"])
    lines = [
        f"rollout {rollout['name']}: {_words(rollout['status'])}",
        f"release {rollout['release']} of model {rollout['model']}, {exposed} devices exposed",
    ]
    if rollout["reason"]:
        lines.append(f"reason: {rollout['reason']}")
    rows = [
        (
            wave["name"],
            wave["phase"],
            str(len(wave["devices"])),
            str(len(wave["control"])),
            _moment(wave["started"]),
            _moment(wave["soak_started"]),
            _moment(wave["finished"]),
        )
        for wave in rollout["waves"]
    ]
    header = ("wave", "phase", "devices", "control", "started", "soaking", "finished")
    lines += ["", output.table(header, rows)]
    gates = [
        (
            wave["name"],
            verdict["metric"],
            verdict["outcome"],
            _figure(verdict["estimate"]),
            f"{_figure(verdict['low'])} .. {_figure(verdict['high'])}",
            _figure(verdict["threshold"]),
            str(verdict["n_devices"]),
            str(verdict["n"]),
            verdict["reason"],
        )
        for wave in rollout["waves"]
        for verdict in wave["verdicts"]
    ]
    if gates:
        lines += ["", output.table(_GATE_COLUMNS, gates)]
    return "\n".join(lines)


def _moment(at: float | None) -> str:
    return "-" if at is None else time.strftime("%H:%M:%S", time.localtime(at))
