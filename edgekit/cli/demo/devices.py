"""The demo's devices: how they are configured, and what their own state folders say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgekit.cli.demo import plan
from edgekit_runtime import config, status


@dataclass(frozen=True)
class DeviceBooks:
    """What a device's own state says: inferences produced in all, and what is not yet delivered."""

    produced: int
    undelivered: int


def _state(folder: Path, device: str) -> Path:
    return folder / "devices" / device


def write_config(
    folder: Path, device: str, labels: dict[str, str], *, socket: Path, broker_port: int
) -> Path:
    """Write the agent's TOML; every other device is built for AVX2 only, the rest choose."""
    path = _state(folder, device).with_suffix(".toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "[device]",
        f"id = {json.dumps(device)}",
        f"state_dir = {json.dumps(str(_state(folder, device)))}",
        *(['targets = ["x86-64-v3"]'] if labels["site"] == "north" else []),
        "[device.labels]",
        *(f"{key} = {json.dumps(value)}" for key, value in labels.items()),
        "[broker]",
        'host = "127.0.0.1"',
        f"port = {broker_port}",
        "[serve]",
        f"socket = {json.dumps(str(socket))}",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def command(path: Path) -> list[str]:
    """How an agent is started."""
    agent = Path(sys.executable).with_name("edgekit-agent")
    return [str(agent), "run", "--config", str(path)]


def read(folder: Path, device: str) -> status.Status:
    """The device's state as it lies on disk, whether its agent runs, is frozen or dead."""
    return status.read(config.load(_state(folder, device).with_suffix(".toml"), {}))


def books(folder: Path, device: str) -> DeviceBooks:
    """Inferences a device produced, and those the manager has not acknowledged."""
    totals = read(folder, device).totals
    return DeviceBooks(totals.produced, totals.live + totals.undrained)


def acknowledged(folder: Path) -> dict[str, int]:
    """Inferences acknowledged by the manager, by device."""
    return {device: read(folder, device).totals.acked for device in plan.devices()}


def unacked(folder: Path, devices: Iterable[str]) -> int:
    """Frames on the devices' disks that nobody has acknowledged."""
    return sum(read(folder, device).spool.frames_unacked for device in devices)


def settled(folder: Path) -> bool:
    """Whether every device has delivered everything."""
    return all(
        books(folder, device).undelivered == 0 and unacked(folder, [device]) == 0
        for device in plan.devices()
    )
