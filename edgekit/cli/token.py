"""``edgekit fleet token``: join tokens, with which devices install themselves."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from edgekit.cli import output
from edgekit.contracts import codec

app = typer.Typer(no_args_is_help=True, help="Join tokens for new devices.")

Manager = Annotated[
    str | None,
    typer.Option("--manager", help="Manager's URL [env EDGEKIT_MANAGER]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    device: Annotated[
        str | None, typer.Option(help="The only device name it is good for [any].")
    ] = None,
    note: Annotated[str, typer.Option(help="What it is for, for people.")] = "",
    ttl_s: Annotated[float, typer.Option(help="Seconds until it expires.")] = 3600.0,
    url: Annotated[
        str | None,
        typer.Option(help="The manager as the device reaches it [as this command does]."),
    ] = None,
    manager: Manager = None,
    as_json: Json = False,
) -> None:
    """Make a token for one device and print the line to type there. The secret is shown once."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    body = codec.encode({"device": device, "note": note, "ttl_s": ttl_s, "url": url})
    with ManagerClient(manager) as client:
        _, made = client.post("/tokens", body)
    if as_json:
        output.emit_json(made)
        return
    output.note(f"token {made['id']}, for {device or 'any one device'}, {ttl_s:.0f} s:")
    output.emit(made["command"])


@app.command("list")
def list_tokens(manager: Manager = None, as_json: Json = False) -> None:
    """List tokens and what became of them; never their secrets."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        found = client.get("/tokens")
    if as_json:
        output.emit_json(found)
        return
    now = time.time()
    rows = [
        (str(t["id"]), _state(t, now), t["device"] or "any", t["used_by"] or "-", t["note"])
        for t in found
    ]
    output.emit(output.table(("token", "state", "for", "used by", "note"), rows))


def _state(token: dict[str, Any], now: float) -> str:
    if token["revoked"] is not None:
        return "revoked"
    if token["used"] is not None:
        return "used"
    return "expired" if token["expires"] <= now else "open"


@app.command()
def revoke(
    number: Annotated[int, typer.Argument(help="Number of the token.")], manager: Manager = None
) -> None:
    """Make a token useless. A device that joined with it stays."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        client.request("DELETE", f"/api/v1/tokens/{number}")
    output.emit(f"token {number}: revoked")
