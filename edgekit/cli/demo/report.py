"""The demo's report: its shape, and the claims that must hold for it to be called ok.

`check` is pure and knows nothing about how the figures were obtained (`evidence` reads them back
from database, spool, ledger and ``/proc``). It trusts no figure alone: each is bounded and compared
with another source wherever there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import msgspec

from edgekit.contracts.verdict import Outcome, Verdict
from edgekit_fleet.rollout.spec import COMPARISONS


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
    """One rollout; ``ran_on`` are the devices whose telemetry shows the release."""

    name: str
    release: str
    verdict: str
    reason: str
    devices_exposed: int
    ran_on: tuple[str, ...]
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
    """Agents as processes; medians over devices, from ``/proc`` and from what they reported."""

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
    if variant.metric != "top1" or variant.precision not in {"fp32", "int8"}:
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
    if (variant.precision == "int8") != (variant.size_bytes < variant.size_bytes_original * 0.7):
        yield f"{name}: {variant.precision} with {variant.size_bytes} bytes"
    expected = "none" if variant.target == "rpi5" else "native"
    if variant.validated != expected:
        yield f"{name}: validated {variant.validated}, expected {expected}"
    for latency in (variant.latency_ms, variant.latency_ms_original):
        if (variant.validated == "native") != _positive(latency):
            yield f"{name}: validated {variant.validated}, latency {latency}"


def _good_rollouts(report: Report) -> Problems:
    names = [rollout.release for rollout in report.rollouts]
    if names != ["meter-v1", "meter-v2", "meter-v3"]:
        yield f"rollouts: {names}"
    for rollout in report.rollouts[:2]:
        devices = len(report.agent.pids)
        if rollout.verdict != "succeeded" or not rollout.reason:
            yield f"rollout {rollout.name}: {rollout.verdict} ({rollout.reason})"
        if rollout.devices_exposed != devices or len(set(rollout.ran_on)) != devices:
            yield (
                f"rollout {rollout.name}: {rollout.devices_exposed} exposed, ran on "
                f"{len(set(rollout.ran_on))} of {devices}"
            )
        for wave in rollout.waves:
            if wave.phase != "done" or any(g.outcome is not Outcome.PASS for g in wave.gates):
                yield f"rollout {rollout.name}: wave {wave.name} is {wave.phase}"
    if not any(wave.gates and wave.control for r in report.rollouts[1:2] for wave in r.waves):
        yield "rollout meter-v2: no wave was compared with a control cohort"


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
    if not failed:
        yield f"rollout {bad.name}: no gate failed"
    for gate in failed:
        yield from _convincing(gate, bad)
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
    if gate.metric not in bad.reason or f"{gate.n} samples" not in bad.reason:
        yield f"rollout {bad.name}: the reason does not tell of {gate.metric}: {bad.reason}"
    figures = (gate.threshold, gate.low, gate.estimate, gate.high)
    if any(figure is None for figure in figures) or sorted(figures) != list(figures):  # type: ignore[type-var]
        yield f"rollout {bad.name}: {gate.metric}: {figures} do not show a failure"
    if gate.n < 100 or gate.n_devices < 4 or not 0.0 <= gate.missing < 0.35:
        yield f"rollout {bad.name}: {gate.metric}: {gate.n} samples, {gate.n_devices} devices"


def _waves(report: Report) -> Problems:
    for rollout in report.rollouts:
        if not _positive(rollout.seconds):
            yield f"rollout {rollout.name}: took {rollout.seconds} s"
        seen: set[str] = set()
        for wave in rollout.waves:
            name = f"rollout {rollout.name}: wave {wave.name}"
            if wave.phase == "waiting":
                continue
            times = (wave.started, wave.soak_started, wave.finished)
            if any(t is None or t < 1.6e9 for t in times) or sorted(times) != list(times):  # type: ignore[type-var]
                yield f"{name}: times {times}"
            if (
                not wave.devices
                or seen & set(wave.devices)
                or set(wave.devices) & set(wave.control)
            ):
                yield f"{name}: devices {wave.devices}, control {wave.control}"
            seen |= set(wave.devices)
            unknown = (set(wave.devices) | set(wave.control)) - report.agent.pids.keys()
            if unknown:
                yield f"{name}: unknown devices {sorted(unknown)}"
            for gate in wave.gates:
                if gate.outcome is Outcome.PASS and not (
                    gate.high is not None and gate.threshold is not None and gate.n > 0
                    and gate.high <= gate.threshold
                ):  # fmt: skip
                    yield f"{name}: {gate.metric} passed without figures that pass"


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
    killed = sorted(fault.killed.partition(" ")[0] for fault in report.faults)
    if killed != ["agent", "broker", "manager"]:
        yield f"faults: {killed} were killed"
    first = report.rollouts[0].waves[0].started or 0.0
    for fault in report.faults:
        name = f"fault {fault.killed}"
        if fault.unacked_at_kill < 1:
            yield f"{name}: killed while nothing was in flight"
        if not fault.gone or fault.pid == fault.pid_after or min(fault.pid, fault.pid_after) < 2:
            yield f"{name}: process {fault.pid} became {fault.pid_after}, gone: {fault.gone}"
        if not 0.0 < fault.recovered_after_s < 60.0:
            yield f"{name}: recovered after {fault.recovered_after_s} s"
        if not first < fault.at < first + report.seconds or not fault.during:
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
