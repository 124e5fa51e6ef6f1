"""The demo's report: its shape, and the claims that must hold for it to be called ok.

`check` is pure and knows nothing about how the figures were obtained (`evidence` reads them back
from database, spool, ledger and ``/proc``). It trusts no figure alone: each is bounded and compared
with another source wherever there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from edgekit.cli.demo import plan
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit_fleet.rollout.spec import COMPARISONS

PRECISIONS = frozenset({"fp32", "fp16", "int8", "w8"})  # what the build may find best


class Variant(msgspec.Struct, kw_only=True):
    """One built variant; from the build record, its size from the blob itself."""

    version: str
    target: str
    precision: str
    metric: str
    quality: float
    quality_original: float
    quality_drop: float
    quality_drop_upper: float
    quality_drop_max: float
    size_bytes: int
    size_bytes_original: int
    latency_ms: float | None
    latency_ms_original: float | None
    validated: str
    gates: tuple[str, ...]  # what was gated, and passed


class WaveFigures(msgspec.Struct, kw_only=True):
    """One wave; from the manager's database."""

    name: str
    phase: str
    started: float | None
    soak_started: float | None
    finished: float | None
    devices: tuple[str, ...]
    control: tuple[str, ...]
    gates: tuple[Verdict, ...]


class RolloutFigures(msgspec.Struct, kw_only=True):
    """One rollout; ``ran_on``, ``errors`` and ``violations`` come from devices' telemetry."""

    name: str
    release: str
    verdict: str
    reason: str
    devices_exposed: int
    ran_on: tuple[str, ...]
    errors: int  # of inferences on the release
    violations: int  # inputs outside its contract
    waves: tuple[WaveFigures, ...]
    seconds: float


class Count(msgspec.Struct, kw_only=True):
    """One device's inferences by four independent books."""

    answered: int  # the load client's ledger
    produced: int  # the device's own state
    counted: int  # rows in the manager's database
    evicted: int  # tombstones in the manager's database


class Inferences(msgspec.Struct, kw_only=True):
    """Totals, and the books of each device."""

    answered: int
    produced: int
    counted: int
    evicted: int
    undelivered: int  # frames and ring records still on devices
    unanswered: int  # requests the load client gave up on
    retried: int
    seconds: float
    devices: dict[str, Count]


class FaultFigures(msgspec.Struct, kw_only=True):
    """One kill; see `edgekit.cli.demo.faults`."""

    killed: str
    pid: int
    pid_after: int
    at: float
    during: str
    unacked_at_kill: int
    gone: bool
    recovered_after_s: float


class AgentFigures(msgspec.Struct, kw_only=True):
    """Agents with their workers: median resident set, start as the killed one reported it."""

    rss_mb: float
    start_to_first_inference_s: float
    pids: dict[str, int]
    active: dict[str, str]  # release each device runs at the end
    refetched_bytes: dict[str, int]  # transferred by devices on their way back from v3


class Report(msgspec.Struct, kw_only=True):
    """``demo-report.json``."""

    schema: int = 1
    ok: bool
    problems: tuple[str, ...] = ()
    broker: str
    seed: int
    targets: tuple[str, ...]
    rate_per_device: float
    variants: tuple[Variant, ...]
    rollouts: tuple[RolloutFigures, ...]
    inferences: Inferences
    faults: tuple[FaultFigures, ...]
    agent: AgentFigures
    seconds: float


Problems = Iterator[str]


def check(report: Report) -> list[str]:
    """Every claim that does not hold, in words; empty when the demo may say ok."""
    checks: tuple[Callable[[Report], Problems], ...] = (
        _variants,
        _good_rollouts,
        _bad_rollout,
        _waves,
        _inferences,
        _faults,
        _agents,
    )
    return [problem for each in checks for problem in each(report)]


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _variants(report: Report) -> Problems:
    built = {(variant.version, variant.target) for variant in report.variants}
    wanted = {(version, target) for version in ("1", "2", "3") for target in report.targets}
    if built != wanted or len(report.variants) != len(wanted):
        yield f"variants: {sorted(built)} were built, {sorted(wanted)} were asked for"
    if len(report.targets) < 2 or "rpi5" not in report.targets:
        yield f"variants: targets {report.targets}"
    for variant in report.variants:
        name = f"variant {variant.version}/{variant.target}"
        yield from _variant(variant, name)


def _variant(variant: Variant, name: str) -> Problems:
    if variant.metric != "top1" or variant.precision not in PRECISIONS:
        yield f"{name}: metric {variant.metric}, precision {variant.precision}"
    if not (0.5 < variant.quality <= 1.0 and 0.5 < variant.quality_original <= 1.0):
        yield f"{name}: quality {variant.quality} of {variant.quality_original}"
    drop = variant.quality_original - variant.quality
    if not math.isclose(drop, variant.quality_drop, abs_tol=1e-6):
        yield f"{name}: drop {variant.quality_drop} is not the difference of the qualities"
    if not variant.quality_drop < variant.quality_drop_upper <= variant.quality_drop_max <= 0.05:
        yield f"{name}: upper bound {variant.quality_drop_upper} of {variant.quality_drop_max}"
    if not 0 < variant.size_bytes <= variant.size_bytes_original * 1.05 + 4096:
        yield f"{name}: {variant.size_bytes} bytes of {variant.size_bytes_original}"
    # Whichever precision won (INT8 in a few layers saves little): float is not smaller by itself.
    if variant.precision == "fp32" and variant.size_bytes < variant.size_bytes_original * 0.95:
        yield f"{name}: {variant.precision} with {variant.size_bytes} bytes"
    yield from _proof(variant, name)


def _proof(variant: Variant, name: str) -> Problems:
    """What was gated, and where it ran."""
    wanted = {"top1_drop", "size_bytes"}
    if variant.target != "rpi5":
        wanted |= {"golden_agreement", "latency_ms_p50", "validation"}
    if set(variant.gates) != wanted:
        yield f"{name}: passed {variant.gates}, declared {sorted(wanted)}"
    expected = "none" if variant.target == "rpi5" else "native"
    if variant.validated != expected:
        yield f"{name}: validated {variant.validated}, expected {expected}"
    for latency in (variant.latency_ms, variant.latency_ms_original):
        if (variant.validated == "native") != _positive(latency):
            yield f"{name}: validated {variant.validated}, latency {latency}"


def _good_rollouts(report: Report) -> Problems:
    for rollout in report.rollouts[:2]:
        yield from _healthy(rollout)
        devices = set(report.agent.pids)
        if (rollout.verdict, rollout.reason) != ("succeeded", "every wave passed its gates"):
            yield f"rollout {rollout.name}: {rollout.verdict} ({rollout.reason})"
        if rollout.devices_exposed != len(devices) or set(rollout.ran_on) != devices:
            yield (
                f"rollout {rollout.name}: {rollout.devices_exposed} of {len(devices)} exposed, "
                f"ran on {sorted(rollout.ran_on)}"
            )
        for wave in rollout.waves:
            if wave.phase != "done" or any(g.outcome is not Outcome.PASS for g in wave.gates):
                yield f"rollout {rollout.name}: wave {wave.name} is {wave.phase}"
    if not any(wave.gates and wave.control for r in report.rollouts[1:2] for wave in r.waves):
        yield "rollout meter-v2: no wave was compared with a control cohort"


def _healthy(rollout: RolloutFigures) -> Problems:
    if rollout.errors or rollout.violations:
        yield f"rollout {rollout.name}: errors {rollout.errors}, violations {rollout.violations}"


def _bad_rollout(report: Report) -> Problems:
    if len(report.rollouts) != 3:
        return
    bad = report.rollouts[2]
    canary, *later = bad.waves
    if bad.verdict != "rolled_back" or canary.phase != "stopped":
        yield f"rollout {bad.name}: {bad.verdict}, canary wave {canary.phase}"
    if any(wave.started is not None or wave.devices for wave in later) or not later:
        yield f"rollout {bad.name}: a wave after the canary was started"
    if bad.devices_exposed != len(canary.devices) or len(canary.devices) != 4:
        yield f"rollout {bad.name}: {bad.devices_exposed} exposed, {len(canary.devices)} canaries"
    if not bad.ran_on or set(bad.ran_on) - set(canary.devices):
        yield f"rollout {bad.name}: ran on {bad.ran_on}, canaries are {canary.devices}"
    failed = [gate for gate in canary.gates if gate.outcome is Outcome.FAIL]
    told = "; ".join(f"{gate.metric}: {gate.reason}" for gate in failed)
    if not failed or bad.reason != told:
        yield f"rollout {bad.name}: {len(failed)} gates failed, reason {bad.reason!r}"
    for gate in failed:
        yield from _convincing(gate, bad)
    yield from _healthy(bad)  # no device could have known by itself
    back = {device: report.agent.active.get(device) for device in canary.devices}
    if set(back.values()) != {"meter-v2"}:
        yield f"rollout {bad.name}: devices did not go back to v2: {back}"
    fetched = {device: report.agent.refetched_bytes.get(device) for device in canary.devices}
    if set(fetched.values()) != {0}:
        yield f"rollout {bad.name}: devices fetched again on the way back: {fetched}"


def _convincing(gate: Verdict, bad: RolloutFigures) -> Problems:
    """A failed gate must carry figures that fail, from a comparison with control."""
    if gate.metric not in {metric.value for metric in COMPARISONS}:
        yield f"rollout {bad.name}: failed by {gate.metric}, not by a comparison"
    if f"{gate.n_devices} devices, {gate.n} samples" not in gate.reason:
        yield f"rollout {bad.name}: {gate.metric}: {gate.n_devices} devices, {gate.n} samples?"


def _waves(report: Report) -> Problems:
    planned = [plan.rollout(model) for model in plan.MODELS]
    names = [(spec["name"], spec["release"]) for spec in planned]
    if [(rollout.name, rollout.release) for rollout in report.rollouts] != names:
        yield f"rollouts: {[rollout.name for rollout in report.rollouts]}"
    for rollout, spec in zip(report.rollouts, planned, strict=False):
        if not _positive(rollout.seconds):
            yield f"rollout {rollout.name}: took {rollout.seconds} s"
        if [wave.name for wave in rollout.waves] != [wave["name"] for wave in spec["waves"]]:
            yield f"rollout {rollout.name}: waves {[wave.name for wave in rollout.waves]}"
        seen: set[str] = set()
        for wave, asked in zip(rollout.waves, spec["waves"], strict=False):
            name = f"rollout {rollout.name}: wave {wave.name}"
            yield from _wave(wave, name, seen, set(report.agent.pids))
            yield from _gates(wave, asked, name)
            seen |= set(wave.devices)


def _wave(wave: WaveFigures, name: str, seen: set[str], known: set[str]) -> Problems:
    members, control = set(wave.devices), set(wave.control)
    if (members | control) - known:
        yield f"{name}: unknown devices {sorted((members | control) - known)}"
    if wave.phase == "waiting":
        return
    times = [t for t in (wave.started, wave.soak_started, wave.finished) if t is not None]
    if len(times) != 3 or times[0] < 1.6e9 or sorted(times) != times:
        yield f"{name}: times {times}"
    if not members or seen & members or members & control:
        yield f"{name}: devices {wave.devices}, control {wave.control}"


def _gates(wave: WaveFigures, asked: dict[str, Any], name: str) -> Problems:
    declared = {gate["metric"]: gate["max"] for gate in asked.get("gates", [])}
    if wave.phase != "waiting" and {g.metric: g.threshold for g in wave.gates} != declared:
        yield f"{name}: gates {[(g.metric, g.threshold) for g in wave.gates]}, asked {declared}"
    for gate in wave.gates:
        if gate.outcome is Outcome.INCONCLUSIVE:
            continue
        low, estimate, high, limit = (
            math.nan if value is None else value
            for value in (gate.low, gate.estimate, gate.high, gate.threshold)
        )
        shown = limit < low if gate.outcome is Outcome.FAIL else high <= limit
        if not (-1.0 <= low <= estimate <= high <= 2.0 and shown):
            yield f"{name}: {gate.metric}: {low}..{high} against {limit} is no {gate.outcome.value}"
        cohort = len(wave.devices) + len(wave.control)
        if not (gate.n >= 100 and 2 <= gate.n_devices <= cohort and 0.0 <= gate.missing < 0.35):
            yield f"{name}: {gate.metric}: {gate.n} samples, {gate.n_devices} of {cohort} devices"


def _inferences(report: Report) -> Problems:
    books = report.inferences
    if set(books.devices) != set(report.agent.pids):
        yield "inferences: devices with books are not the devices that ran"
    for device, count in books.devices.items():
        if not count.answered == count.counted == count.produced - count.evicted:
            yield (
                f"inferences: {device}: clients have {count.answered} answers, the device produced "
                f"{count.produced}, the manager counted {count.counted} (evicted {count.evicted})"
            )
    for name in ("answered", "produced", "counted", "evicted"):
        total = sum(getattr(count, name) for count in books.devices.values())
        if total != getattr(books, name):
            yield f"inferences: {name} {getattr(books, name)} is not the sum of devices, {total}"
    if books.undelivered or books.unanswered or books.evicted or books.retried < 0:
        yield (
            f"inferences: {books.undelivered} undelivered, {books.unanswered} unanswered, "
            f"{books.evicted} evicted"
        )
    expected = report.rate_per_device * books.seconds * len(report.agent.pids)
    # Clients pause with a killed agent; on a slow machine they fall behind a little.
    if not (_positive(expected) and 0.6 * expected < books.answered < 1.1 * expected):
        yield f"inferences: {books.answered} answered, about {expected:.0f} were to be expected"


def _faults(report: Report) -> Problems:
    killed = {fault.killed for fault in report.faults}
    agents = killed & {f"agent {device}" for device in report.agent.pids}
    if len(report.faults) != 3 or len(agents) != 1 or killed - agents != {"broker", "manager"}:
        yield f"faults: {sorted(killed)} were killed"
    v2 = plan.rollout(plan.MODELS[1])
    moments = {plan.moment(v2["name"], wave["name"], "soaking") for wave in v2["waves"]}
    first = report.rollouts[0].waves[0].started or 0.0
    for fault in report.faults:
        name = f"fault {fault.killed}"
        if fault.unacked_at_kill < 1:
            yield f"{name}: killed while nothing was in flight"
        if not fault.gone or fault.pid == fault.pid_after or min(fault.pid, fault.pid_after) < 2:
            yield f"{name}: process {fault.pid} became {fault.pid_after}, gone: {fault.gone}"
        if not 0.0 < fault.recovered_after_s < 60.0:
            yield f"{name}: recovered after {fault.recovered_after_s} s"
        if not first < fault.at < first + report.seconds or fault.during not in moments:
            yield f"{name}: at {fault.at} during {fault.during!r}"


def _agents(report: Report) -> Problems:
    agent = report.agent
    if len(agent.pids) != 12 or len(set(agent.pids.values())) != 12 or min(agent.pids.values()) < 2:
        yield f"agents: not 12 processes: {agent.pids}"
    if not 15.0 < agent.rss_mb < 500.0:
        yield f"agents: resident set of {agent.rss_mb} MB"
    if not 0.05 < agent.start_to_first_inference_s < 120.0:
        yield f"agents: first inference after {agent.start_to_first_inference_s} s"
    if set(agent.active) != set(agent.pids) or set(agent.active.values()) != {"meter-v2"}:
        yield f"agents: run {agent.active} at the end, not v2 everywhere"
    if not _positive(report.seconds) or not _positive(report.rate_per_device):
        yield f"report: {report.seconds} s at {report.rate_per_device} inferences/s"
