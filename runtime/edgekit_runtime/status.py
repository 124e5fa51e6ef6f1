"""What ``edgekit-agent status`` shows: read from the state folder, nothing is changed.

Works while the agent runs, when it is stopped and after it was killed.
"""

from __future__ import annotations

import msgspec

from edgekit.contracts.messages import ModelReport, SpoolReport
from edgekit.contracts.states import DeviceState
from edgekit_runtime import counting, lock, process_facts
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import counts
from edgekit_runtime.pipelines.counts import Figures
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.spool import Spool
from edgekit_runtime.twocopy import TwoCopy
from edgekit_runtime.wiring import FIRST_INFERENCE


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Inferences since the storage epoch began: ``produced == acked + evicted + live + undrained``.

    While the agent runs, the figures are read one after the other and may be apart by what
    happens in between.
    """

    produced: int
    acked: int
    evicted: int
    live: int
    undrained: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One device."""

    device: str
    tenant: str
    shard: int
    pid: int | None
    alive: bool
    rss_bytes: int | None
    start_to_first_inference_s: float | None
    gen: int
    device_state: DeviceState
    note: str
    models: dict[str, ModelReport]
    epoch: int
    boot: int
    spool: SpoolReport
    totals: Totals
    pipelines: dict[str, Figures] = {}


def read(config: AgentConfig) -> Status:
    """The state of the device described by ``config``."""
    state, disk, clock = config.device.state_dir, PosixDisk(), SystemClock()
    record = TwoCopy(disk, state, "record", DeploymentRecord).peek().value or DeploymentRecord()
    spool = Spool.peek(disk, state / "spool", clock)
    produced, undrained = counting.peek_totals(disk, state / "regions", spool)
    pid, alive = lock.holder(state)
    return Status(
        device=config.device.id,
        tenant=config.device.tenant,
        shard=config.address.shard,
        pid=pid,
        alive=alive,
        rss_bytes=process_facts.rss_bytes(pid) if alive and pid else None,
        start_to_first_inference_s=_first_inference_s(disk, config),
        gen=record.gen,
        device_state=record.device_state,
        note=record.note,
        models={name: model.report() for name, model in record.models.items()},
        epoch=spool.cursor.epoch,
        boot=spool.cursor.boot,
        spool=spool.report(),
        totals=Totals(
            produced=produced,
            acked=spool.cursor.acked_inferences,
            evicted=spool.cursor.evicted_inferences,
            live=spool.live_inferences,
            undrained=undrained,
        ),
        pipelines=_pipelines(disk, config),
    )


def _first_inference_s(disk: PosixDisk, config: AgentConfig) -> float | None:
    raw = disk.read(config.device.state_dir / FIRST_INFERENCE, bytes_max=64)
    try:
        return float(raw) if raw else None
    except ValueError:
        return None


def _pipelines(disk: PosixDisk, config: AgentConfig) -> dict[str, Figures]:
    found = {s.name: counts.read(disk, config.device.state_dir, s) for s in config.pipeline}
    return {name: each for name, each in found.items() if each is not None}


def describe(status: Status) -> str:
    """For people."""
    running = f"running (pid {status.pid})" if status.alive else "not running"
    lines = [
        f"device   {status.tenant}/{status.shard}/{status.device}, {running}",
        f"state    {status.device_state.value}, desired generation {status.gen}",
    ]
    for name, model in sorted(status.models.items()):
        active = model.active
        what = f"{active.release} ({active.version}, {active.target})" if active else "nothing"
        lines.append(f"model    {name}: {model.state.value}, serves {what}")
        lines += [
            f"failed   {digest[:19]}: {failure.reason}" for digest, failure in model.failed.items()
        ]
    totals = status.totals
    lines.append(
        f"counted  {totals.produced} = {totals.acked} acknowledged + {totals.evicted} evicted"
        f" + {totals.live} in the spool + {totals.undrained} in the rings"
    )
    lines.append(
        f"spool    {status.spool.frames_unacked} frames waiting, {status.spool.bytes_used} bytes"
    )
    for name, each in sorted(status.pipelines.items()):
        lines += _described(name, each)
    if status.note:
        lines.append(f"note     {status.note}")
    return "\n".join(lines)


def _described(name: str, figures: Figures) -> list[str]:
    lost = [f"{count} {why}" for why, count in (*figures.refused.items(), *figures.dropped.items())]
    told = ", ".join(each for each in lost if not each.startswith("0 ")) or "none"
    flow = f"received {figures.received}, inferred {figures.inferred}, in hand {figures.in_hand}"
    lines = [
        f"pipeline {name}: {figures.state}, started {figures.starts} times",
        f"  {flow}, refused or dropped: {told}",
    ]
    for sink in figures.sinks:
        ends = f"delivered {sink.delivered}, failed {sink.failed}"
        dropped = sum(sink.dropped.values())
        lines.append(f"  sink {sink.name}: {ends}, dropped {dropped}, tried again {sink.retries}")
    return lines
