"""What ``edgekit-agent status`` shows: read from the state folder, nothing is changed.

Works while the agent runs, when it is stopped and after it was killed.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edgekit.contracts.health import Resources, SpoolReport
from edgekit.contracts.messages import ModelReport
from edgekit.contracts.states import DeviceState
from edgekit_runtime import counting, launch, lock, process_facts
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import counts
from edgekit_runtime.pipelines.counts import Figures
from edgekit_runtime.readings import Readings
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
    resources: Resources = Resources()


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
        resources=Readings(state).read(_workers(pid) if alive and pid else {}),
    )


def _workers(pid: int) -> dict[str, int]:
    """Resident bytes of the agent's workers, by process."""
    sizes = {
        f"pid {child}": process_facts.rss_bytes(child)
        for child in process_facts.children(pid, launch.WORKER_NAME)
    }
    return {name: size for name, size in sizes.items() if size is not None}


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
    lines += _resources(status.resources)
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


def _resources(found: Resources) -> Iterator[str]:
    facts = []
    if found.load_1m is not None:
        facts.append(f"load {found.load_1m:.2f}")
    if found.memory_available_bytes is not None:
        total = found.memory_total_bytes or 0
        mib = found.memory_available_bytes // 2**20
        facts.append(f"{mib} of {total // 2**20} MiB memory available")
    if found.disk_free_bytes is not None:
        facts.append(f"{found.disk_free_bytes // 2**20} MiB disk free")
    yield f"device   {', '.join(facts) or 'no readings'}"
    warmest = max(found.temperatures_c.items(), key=lambda item: item[1], default=None)
    heat = f"{warmest[1]:.0f} degrees C ({warmest[0]})" if warmest else "no temperature sensor"
    told = {True: "throttled", False: "not throttled", None: "throttling unknown"}
    why = f": {found.throttled_why}" if found.throttled_why else ""
    yield f"heat     {heat}, {told[found.throttled]}{why}"
    for name, size in sorted(found.workers_rss_bytes.items()):
        yield f"worker   {name}: {size // 2**20} MiB"
