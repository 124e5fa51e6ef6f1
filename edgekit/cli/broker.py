"""``edgekit broker``: run an MQTT broker with limits that do not lose messages."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import output

app = typer.Typer(no_args_is_help=True, help="Run an MQTT broker.")


class EngineName(str, Enum):
    """Choices of --engine."""

    AUTO = "auto"
    IOTCORE = "iotcore"
    MOSQUITTO = "mosquitto"


@app.callback()
def _group() -> None:
    """Run an MQTT broker."""


@app.command()
def run(
    engine: Annotated[
        EngineName, typer.Option(help="auto: mosquitto when it is on PATH, else iotcore.")
    ] = EngineName.AUTO,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 1883,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    data_dir: Annotated[
        Path, typer.Option(help="Folder for configuration and persistence.")
    ] = Path("edgekit-broker"),
    insecure_bind: Annotated[
        bool, typer.Option("--insecure-bind", help="Allow an address others can reach: no login!")
    ] = False,
) -> None:
    """Run a broker in the foreground until it is stopped.

    It lets anyone in, so it serves this machine only.
    """
    with output.needs("fleet"):
        from edgekit_fleet import broker
    config = broker.BrokerConfig(
        data_dir=data_dir,
        engine=broker.Engine(engine.value),
        listen=listen,
        port=port,
        insecure_bind=insecure_bind,
    )
    broker.run(config, output.note)
