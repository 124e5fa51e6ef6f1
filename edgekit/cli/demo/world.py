"""Step 3: the fleet as processes: broker, manager, twelve agents, load clients."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from edgekit.cli.demo import data, devices, plan, train
from edgekit.cli.demo.fleet import FleetClient
from edgekit.cli.demo.processes import Daemon, Daemons, free_port, wait_until
from edgekit.cli.demo.shell import ME, Shell

START_S_MAX = 60.0


class World:
    """Everything that runs. ``sockets`` must be a short path: Unix sockets allow 107 bytes."""

    def __init__(self, shell: Shell, daemons: Daemons, sockets: Path, broker_engine: str) -> None:
        self.shell, self.daemons, self.sockets = shell, daemons, sockets
        self.logs = shell.folder / "logs"
        self.logs.mkdir()
        port, api = free_port(), free_port()
        self.client = FleetClient(f"http://127.0.0.1:{api}")
        self.broker = self._start(
            "broker",
            [*ME, "broker", "run", "--engine", broker_engine, "--port", str(port)],
            ["--data-dir", str(shell.folder / "broker")],
        )
        self.manager = self._start(
            "manager",
            [*ME, "fleet", "up", "--broker", f"127.0.0.1:{port}", "--port", str(api)],
            ["--data-dir", str(shell.folder / "manager")],
            ["--window-s", str(plan.WINDOW_S), "--report-s", str(plan.REPORT_S)],
        )
        self.agents: dict[str, Daemon] = {}
        for name, labels in plan.devices().items():
            config = devices.write_config(
                shell.folder, name, labels, socket=self.socket(name), broker_port=port
            )
            self.agents[name] = self._start(f"agent {name}", devices.command(config))
        self._wait_up()

    def _start(self, name: str, *command: list[str]) -> Daemon:
        words = [word for part in command for word in part]
        log = self.logs / f"{name.replace(' ', '-')}.log"
        return self.daemons.add(Daemon(name, words, log))

    def _wait_up(self) -> None:
        wait_until("manager", lambda: self.up() and self.client.healthy(), START_S_MAX)
        wait_until(
            "agents online",
            lambda: self.up() and self.client.online() == set(self.agents),
            START_S_MAX,
        )
        self.shell.say(
            f"3. Fleet is up: {self.broker_engine()}, manager at {self.client.url} (a status page "
            f"for your browser), {len(self.agents)} agents, {len(self.agents) + 2} processes"
        )

    def up(self) -> bool:
        """True; raises `UnavailableError` when a process has ended by itself."""
        for daemon in self.daemons:
            daemon.ensure_alive()
        return True

    def socket(self, device: str) -> Path:
        """Where a device's agent listens."""
        return self.sockets / f"{device}.sock"

    def broker_engine(self) -> str:
        """Which broker runs, by its own first line."""
        text = (self.logs / "broker.log").read_text(errors="replace")
        return "mosquitto" if "mosquitto" in text else "iotcore"


class Load:
    """The load clients: one process, one thread and one ledger a device."""

    def __init__(self, world: World, meters: data.MeterData, seed: int) -> None:
        folder = world.shell.folder
        out = folder / "ledger"
        out.mkdir()
        config = {
            "model": plan.MODEL,
            "input": train.INPUT,
            "devices": {name: str(world.socket(name)) for name in world.agents},
            "samples": [[round(float(v), 6) for v in row] for row in meters.field.x],
            "labels": [int(label) for label in meters.field.y],
            "rate": plan.RATE_PER_DEVICE,
            "label_share": plan.LABEL_SHARE,
            "label_delay_s": plan.LABEL_DELAY_S,
            "seed": seed,
            "out": str(out),
        }
        path = folder / "load.json"
        path.write_text(json.dumps(config))
        command = [sys.executable, "-m", "edgekit.cli.demo.load", str(path)]
        self.daemon = Daemon("load", command, world.logs / "load.log")
        world.daemons.add(self.daemon)
        self.started = time.time()
        self.stopped = 0.0

    def stop(self) -> None:
        """Stop asking; whatever was sent is answered first."""
        self.daemon.stop(timeout_s=60.0)
        self.stopped = time.time()

    @property
    def seconds(self) -> float:
        """How long it asked."""
        return round(self.stopped - self.started, 3)
