"""The demo, step by step. Each step is what an engineer or operator would type."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit.cli import output
from edgekit.cli.demo import data, devices, evidence, faults, models, plan
from edgekit.cli.demo.processes import Daemon, Daemons, resident_mb, wait_until
from edgekit.cli.demo.report import FaultFigures, Report
from edgekit.cli.demo.shell import Shell
from edgekit.cli.demo.world import Load, World
from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, UnavailableError, translate_os_errors

ROLLOUT_S_MAX = 150.0
SETTLE_S_MAX = 60.0
MARK_FILE = ".edgekit-demo"  # only a folder that holds it is ever cleared

OnPhase = Callable[[str, str], None]


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    out: Path
    broker: str
    seed: int
    keep: bool


def tell(options: Options, write: Callable[[Report], None]) -> Report:
    """Run the demo; ``write`` gets the report before ``keep`` waits for Ctrl-C.

    Raises:
        EdgekitError: a step failed.
    """
    # A plain SIGTERM would end this process and leave its fleet running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _fresh_folder(options.out)
    shell = Shell(options.out)
    built_for = models.targets(shell)
    meters = models.make(shell, built_for)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as sockets, Daemons() as daemons:
        world = World(shell, daemons, Path(sockets), options.broker)
        story = _Story(options, shell, world, meters)
        report = story.play(built_for)
        write(report)
        if options.keep:
            _stay(world)
    return report


def _fresh_folder(folder: Path) -> None:
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARK_FILE).exists():
            raise BadInputError(
                f"{folder}: is not empty and not a demo's folder", hint="pass another --out"
            )
        shutil.rmtree(folder)
    with translate_os_errors("create", folder):
        folder.mkdir(parents=True)
        (folder / MARK_FILE).touch()


def _stay(world: World) -> None:
    output.note(f"dashboard: {world.client.url} - press Ctrl-C to stop")
    try:
        while world.up():
            time.sleep(0.5)
    except KeyboardInterrupt:
        output.note("stopping")


class _Story:
    def __init__(
        self, options: Options, shell: Shell, world: World, meters: data.MeterData
    ) -> None:
        self.options, self.shell, self.world, self.meters = options, shell, world, meters
        self.folder = shell.folder
        self.faults: list[FaultFigures] = []

    def play(self, built_for: tuple[str, ...]) -> Report:
        """Steps 4 to 6."""
        first, second, third = plan.MODELS
        self.shell.say("4. Roll out v1 to all, then v2 in waves; break things meanwhile")
        name = self.release(first)
        load = Load(self.world, self.meters, self.options.seed)
        self.watch(name)
        name = self.release(second)
        self.watch(name, self.saboteur(name))
        self.shell.say("5. Roll out v3: it passed every build gate, and it is wrong in the field")
        self.watch(self.release(third))
        rss = {name: resident_mb(agent.pid) for name, agent in self.world.agents.items()}
        self.world.daemons.release(load.daemon)
        load.stop()
        self.shell.say("6. Clients have stopped; every frame must now be acknowledged")
        wait_until("frames acknowledged", lambda: devices.settled(self.folder), SETTLE_S_MAX)
        wait_until(
            "final reports", lambda: self.world.client.heard_since(load.stopped), SETTLE_S_MAX
        )
        observed = evidence.Observed(
            broker=self.world.broker_engine(),
            seed=self.options.seed,
            targets=built_for,
            faults=tuple(self.faults),
            pids={name: agent.pid for name, agent in self.world.agents.items()},
            rss_mb=rss,
            load_seconds=load.seconds,
            seconds=round(self.shell.seconds, 3),
        )
        (self.folder / evidence.OBSERVED_FILE).write_bytes(codec.encode_pretty(observed))
        return evidence.collect(self.folder)

    def release(self, model: plan.ModelPlan) -> str:
        """Create and publish a release and start its rollout; returns the rollout's name."""
        url = self.world.client.url
        path = str(self.folder / f"{model.release}.release.json")
        out = str(self.folder / f"v{model.version}")
        self.shell.edgekit(
            "release", "create", model.release, "--from", out, "--out", path, "--notes", model.notes
        )
        self.shell.edgekit("release", "publish", path, "--manager", url)
        rollout = plan.rollout(model)
        spec = self.folder / f"{model.release}.rollout.json"
        spec.write_text(json.dumps(rollout, indent=2))
        self.shell.edgekit("fleet", "rollout", "start", str(spec), "--manager", url)
        return str(rollout["name"])

    def watch(self, name: str, on_phase: OnPhase | None = None) -> None:
        """Print progress until the rollout has ended; ``on_phase`` sees each wave's phases once."""
        shown, seen = "", set[tuple[str, str]]()
        deadline = time.monotonic() + ROLLOUT_S_MAX
        while time.monotonic() < deadline:
            self.world.up()
            rollout = self.world.client.rollout(name)
            if rollout is not None:
                if rollout.line() != shown:
                    shown = rollout.line()
                    self.shell.say(f"   {shown}")
                if rollout.terminal:
                    return
                for wave_and_phase in set(rollout.phases()) - seen:
                    seen.add(wave_and_phase)
                    if on_phase:
                        on_phase(*wave_and_phase)
            time.sleep(0.1)
        raise UnavailableError(f"rollout {name}: no end within {ROLLOUT_S_MAX:g} s: {shown}")

    def saboteur(self, name: str) -> OnPhase:
        """Kills one part of the fleet in each wave of rollout ``name``."""
        victims = {
            ("canary", "soaking"): self.world.agents["meter-07"],
            ("quarter", "soaking"): self.world.manager,
            ("all", "soaking"): self.world.broker,
        }

        def on_phase(wave: str, phase: str) -> None:
            victim = victims.pop((wave, phase), None)
            if victim is not None:
                self.fault(victim, during=plan.moment(name, wave, phase))

        return on_phase

    def fault(self, victim: Daemon, *, during: str) -> None:
        """Kill ``victim`` while frames are in flight; wait until the whole fleet has recovered."""
        concerned = [victim.device] if victim.device else list(self.world.agents)
        before = devices.acknowledged(self.folder)

        def recovered() -> bool:
            now = devices.acknowledged(self.folder)
            moved = all(now[device] > before[device] for device in concerned)
            online = self.world.client.online() == set(self.world.agents)
            return moved and online and self.world.client.healthy()

        self.shell.say(f"   !! SIGKILL {victim.name} ({during})")
        found = faults.kill(
            victim,
            during=during,
            in_flight=lambda: devices.unacked(self.folder, concerned),
            recovered=recovered,
        )
        self.faults.append(msgspec.convert(faults.as_document(found), FaultFigures))
        self.shell.say(
            f"   !! {victim.name} is back after {found.recovered_after_s:.1f} s; "
            f"{found.unacked_at_kill} frames were in flight"
        )
