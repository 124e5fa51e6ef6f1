"""``edgekit fleet``: run a manager, look at devices, roll releases out."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import output, rollout, token

app = typer.Typer(no_args_is_help=True, help="Run a fleet manager and talk to it.")
app.add_typer(rollout.app, name="rollout")
app.add_typer(token.app, name="token")

Manager = Annotated[
    str | None,
    typer.Option("--manager", help="Manager's URL [env EDGEKIT_MANAGER]."),
]


@app.command()
def up(
    data_dir: Annotated[
        Path, typer.Option(help="Folder for the database and the artifacts.")
    ] = Path("edgekit-fleet"),
    broker: Annotated[str, typer.Option(help="MQTT broker, HOST:PORT.")] = "127.0.0.1:1883",
    listen: Annotated[str, typer.Option(help="Address of the HTTP API.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the HTTP API; 0 takes a free one.")] = 8470,
    tenant: Annotated[str, typer.Option(help="Tenant whose devices are managed.")] = "default",
    artifacts_url: Annotated[
        str | None,
        typer.Option(help="URL devices fetch bundles from [this manager's own]."),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(help="Bucket for artifacts, s3://BUCKET/PREFIX [the data folder]."),
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(help="URL of an S3 server that is not Amazon's.")
    ] = None,
    device_broker: Annotated[
        str | None, typer.Option(help="Broker as devices reach it, HOST:PORT [--broker].")
    ] = None,
    window_s: Annotated[float, typer.Option(help="Length of devices' telemetry windows.")] = 60.0,
    report_s: Annotated[float, typer.Option(help="Interval of devices' heartbeats.")] = 30.0,
    require_broker: Annotated[
        bool, typer.Option("--require-broker", help="Fail when the broker is absent at start.")
    ] = False,
    insecure_bind: Annotated[
        bool, typer.Option("--insecure-bind", help="Allow an address others can reach: no login!")
    ] = False,
) -> None:
    """Run the fleet manager in the foreground: ingest, rollouts, API, artifacts, status page."""
    with output.needs("fleet"):
        from edgekit_fleet import wiring
        from edgekit_fleet.config import ManagerConfig, parse_host_port
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = ManagerConfig(
        data_dir=data_dir,
        broker=parse_host_port(broker, port_default=1883, what="--broker"),
        listen=listen,
        port=port,
        tenant=tenant,
        artifacts_url=artifacts_url,
        artifacts=artifacts,
        s3_endpoint=s3_endpoint,
        device_broker=parse_host_port(device_broker, port_default=1883, what="--device-broker")
        if device_broker
        else None,
        window_s=window_s,
        report_s=report_s,
        require_broker=require_broker,
        insecure_bind=insecure_bind,
    )
    wiring.run(config, lambda url: output.note(f"manager: listening on {url}"))


@app.command()
def devices(
    manager: Manager = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List devices with their state."""
    with output.needs("fleet"):
        from edgekit.cli.manager_client import ManagerClient
    with ManagerClient(manager) as client:
        found = client.get("/devices")
    if as_json:
        output.emit_json(found)
        return
    now = time.time()
    rows = [row for device in found for row in _device_rows(device, now)]
    header = ("device", "link", "model", "state", "release", "gen", "seen", "labels")
    output.emit(output.table(header, rows))


def _device_rows(device: dict[str, Any], now: float) -> list[tuple[str, ...]]:
    labels = " ".join(f"{key}={value}" for key, value in sorted(device["labels"].items()))
    link = "online" if device["online"] else "offline"
    gen = f"{device['gen_observed']}/{device['gen']}"
    seen = f"{max(0.0, now - device['last_seen']):.0f} s ago" if device["last_seen"] else "never"
    models = sorted(device["models"].items()) or [("-", None)]
    return [
        (
            device["device"],
            link,
            model,
            report["state"] if report else "-",
            report["active"]["release"] if report and report["active"] else "-",
            gen,
            seen,
            labels,
        )
        for model, report in models
    ]
