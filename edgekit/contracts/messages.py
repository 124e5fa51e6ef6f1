"""Messages between manager and agent (docs/protocol.md §3-§6).

State messages are JSON; telemetry records travel in frames (`edgekit.contracts.frames`). Every
message carries ``schema``; fields are only ever added, so a reader ignores what it does not know.
Times are Unix seconds (float) by the sender's clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec

from edgekit.contracts import shadow as shadows
from edgekit.contracts.composition import Link
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.health import Health
from edgekit.contracts.shadow import Shadow, Split
from edgekit.contracts.states import DeviceState, SlotState

SCHEMA = 1
LATENCY_MS_MAX = 60_000.0  # above, the histogram has one bucket
THREADS_MAX = 256
CORES_MAX = 1024  # what sched_setaffinity(2) takes without being asked for more
GROUP_MAX = 16  # models that change together


class DeltaFallback(str, Enum):
    """What a device that holds a version does when it cannot get the next one as a delta."""

    FULL = "full"  # fetch whole files
    WAIT = "wait"  # ask again until there is one
    FAIL = "fail"  # refuse the release


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds of trial and confirmation; they travel with the desired state.

    Defaults are those of the design: at least 1,000 inferences *and* 30 minutes before a slot is
    confirmed, three loads on trial. ``error_rate_max`` acts only above ``error_min_n`` inferences.
    """

    confirm_inferences_min: int = 1000
    confirm_s_min: float = 1800.0
    unproven_after_s: float = 86400.0  # on trial with too little traffic: reported, not confirmed
    trial_tries: int = 3
    error_rate_max: float = 0.01
    nan_rate_max: float = 0.001
    error_min_n: int = 100
    latency_p99_ms_max: float | None = None  # on trial; None: not judged
    latency_ratio_max: float | None = None  # p99 on trial to that of the bundle before it
    latency_min_n: int = 500  # inferences, while not throttled, before a latency is judged
    burn_rate_max: float | None = None  # errors and NaN outputs of a confirmed bundle; None: never
    burn_window_s: float = 300.0  # over which that is looked at
    download_attempts_max: int = 8
    stuck_s_min: float = 10.0  # declared cold start: no inference is called stuck before
    worker_bytes_max: int = 0  # memory of the process that holds the model; 0: no limit
    threads: int = 0  # of the engine, per inference; 0: as the device is configured
    cores: tuple[int, ...] = ()  # of the device, that its worker runs on; (): as it is configured
    overlap: bool = True  # false: no memory for two; what serves is unloaded first, and answers 503
    delta_fallback: DeltaFallback = DeltaFallback.FULL
    shadow: Shadow | None = None  # between self-test and trial, where something else serves
    split: Split | None = None  # likewise


class ImageRef(msgspec.Struct, frozen=True, kw_only=True):
    """An image that holds a bundle and all it runs on, for the platform of one target."""

    digest: str  # of its OCI manifest
    repository: str
    size: int  # bytes, compressed
    registry: str = ""  # host[:port]; empty: the host of the artifacts_url


class VariantRef(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle: digest of its OCI manifest, the repository it is served from, total bytes.

    A device with a container engine runs ``image`` instead, which holds the same bundle.
    """

    digest: str
    repository: str
    size: int
    image: ImageRef | None = None


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What one model should run. The device picks the first of its targets in ``variants``."""

    rollout: str
    wave: int
    release: str
    variants: dict[str, VariantRef]
    policy: Policy = Policy()
    retry_token: str = ""  # a changed token lifts the quarantine of a failed digest
    compose: tuple[Link, ...] = ()  # inputs that are outputs of other models
    group: tuple[str, ...] = ()  # models, this one among them, that change together or not at all


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings the manager gives a device."""

    artifacts_url: str | None = None  # base of the OCI distribution API
    window_s: float = 60.0  # length of a telemetry window
    report_s: float = 30.0  # heartbeat: reported is re-sent at least this often


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """Desired state of one device; ``(gen, digest of the payload)`` is the idempotency key."""

    schema: int = SCHEMA
    gen: int
    deployments: dict[str, Deployment] = {}
    runtime: dict[str, Any] | None = None
    config: DeviceConfig = DeviceConfig()


class SlotRef(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle held by a device and what put it there."""

    digest: str
    version: str
    target: str
    release: str
    rollout: str
    wave: int
    image: ImageRef | None = None  # it lies in the container engine, not among the blobs
    compose: tuple[Link, ...] = ()
    group: tuple[str, ...] = ()  # of the deployment that brought it

    @property
    def content(self) -> str:
        """Digest of what is held: the image, else the bundle."""
        return self.image.digest if self.image is not None else self.digest


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a digest is quarantined on a device."""

    reason: str
    at: float
    attempts: int = 1
    retry_token: str = ""
    content: str = ""  # digest of the image, when it was one that failed
    shared: bool = False  # another model of its group failed: this one may be tried again


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate has shown beside the bundle that serves."""

    n: int = 0  # samples compared, or requests answered
    agreed: int = 0
    errors: int = 0
    nan: int = 0
    dropped: int = 0  # samples that found no room
    seconds: float = 0.0
    agreement_min: float | None = None  # what is asked of it
    suspended: str = ""  # why no samples are taken now


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Deployment of one model as the device sees it."""

    state: SlotState
    active: SlotRef | None = None
    fallback: SlotRef | None = None
    candidate: SlotRef | None = None
    failed: dict[str, Failure] = {}
    unproven: bool = False  # on trial for long, with too little traffic to confirm
    fetched_bytes: int = 0  # transferred for the newest deployment; 0 when it was all held
    shadow: ShadowReport | None = None  # of the candidate, in SHADOW


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What the device is. ``targets`` is ordered, best first."""

    targets: tuple[str, ...]
    arch: str
    isa: tuple[str, ...] = ()
    engines: dict[str, str] = {}
    agent_version: str = ""
    labels: dict[str, str] = {}


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """Full snapshot of one device; retained."""

    schema: int = SCHEMA
    gen_observed: int
    desired_digest: str = ""
    profile: DeviceProfile
    boot: int
    epoch: int
    models: dict[str, ModelReport] = {}
    runtime: dict[str, Any] | None = None
    device_state: DeviceState = DeviceState.OK
    health: Health = Health()
    at: float = 0.0
    note: str = ""  # why the desired state was not (fully) taken, for people


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """Birth and will share one topic; a will whose ``sid`` is not current is stale."""

    schema: int = SCHEMA
    sid: str
    online: bool
    at: float = 0.0


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """Application acknowledgement: these frames are committed at the manager.

    ``intervals`` are closed ``[first, last]`` frame numbers of ``(epoch, boot, lane)``.
    """

    schema: int = SCHEMA
    epoch: int
    boot: int
    lane: int
    intervals: tuple[tuple[int, int], ...]
    manager_time: float


class ClockQuality(str, Enum):
    """How far wall-clock times of a record can be trusted."""

    SYNCED = "synced"
    UNKNOWN = "unknown"


class Window(msgspec.Struct, frozen=True, kw_only=True, tag="window"):
    """Counts of one slot over a stretch of time; windows of equal ``edges_digest`` add up.

    ``region``, ``first``, ``last`` name the half-open range ``[first, last)`` of the counter region
    it was drained from: the identity that makes draining exactly-once.
    """

    model: str
    digest: str
    slot: str
    release: str
    rollout: str
    wave: int
    start: float
    end: float
    n: int  # inferences answered, errors included
    errors: int = 0
    nan: int = 0
    violations: int = 0  # inputs outside the contract
    violated: dict[str, int] = {}  # of those, by "input rule action": one input may break several
    outside: dict[str, int] = {}  # elements that broke the contract, by input probe
    latency: tuple[int, ...] = ()  # counts on stats.histogram.LATENCY_EDGES_US
    probes: dict[str, tuple[int, ...]] = {}  # counts per frozen bin, by probe
    sums: dict[str, float] = {}  # exact sums, e.g. of confidence
    labelled: int = 0  # delayed labels that arrived in this window
    correct: int = 0
    edges_digest: str = ""
    # Of a candidate in the shadow of what serves: no inferences, ``n`` is 0 then.
    shadowed: int = 0  # samples it was given
    agreed: int = 0
    shadow_errors: int = 0  # it refused or failed where the live bundle answered
    shadow_dropped: int = 0  # samples that found no room
    clock: ClockQuality = ClockQuality.UNKNOWN
    region: str
    first: int
    last: int


class Tombstone(msgspec.Struct, frozen=True, kw_only=True, tag="tombstone"):
    """Exactly what the spool dropped: closed range of frames and what they counted."""

    boot: int
    lane: int
    first: int
    last: int
    records: int
    inferences: int
    reason: str
    at: float


class SlotEvent(msgspec.Struct, frozen=True, kw_only=True, tag="slot_event"):
    """A step of the deployment machine worth an audit line."""

    model: str
    digest: str
    release: str
    rollout: str
    state: SlotState
    reason: str
    at: float


class DeviceEvent(msgspec.Struct, frozen=True, kw_only=True, tag="device_event"):
    """Boot, recovery, damage: things that concern the device as a whole."""

    kind: str
    detail: str
    at: float


Record = Window | Tombstone | SlotEvent | DeviceEvent


def check_group(model: str, group: tuple[str, ...]) -> None:
    """Return when ``group`` can be obeyed by a deployment of ``model``.

    Raises:
        BadInputError: one model alone, names twice, too many, or it leaves ``model`` out.
    """
    problem = ""
    if len(set(group)) != len(group):
        problem = "names a model twice"
    elif not 2 <= len(group) <= GROUP_MAX:
        problem = f"names {len(group)} models, 2-{GROUP_MAX} change together"
    elif model not in group:
        problem = f"leaves out {model} itself"
    if group and problem:
        raise BadInputError(f"group of {model}: {problem}", hint="list every model of the group")


def check_policy(policy: Policy) -> Policy:
    """Return ``policy`` when every threshold can be obeyed.

    Raises:
        BadInputError: names the field. Refused when written, not ignored when read.
    """
    shares = {
        "error_rate_max": policy.error_rate_max,
        "nan_rate_max": policy.nan_rate_max,
        "burn_rate_max": policy.burn_rate_max,
    }
    for name, value in shares.items():
        if value is not None and not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise BadInputError(f"policy.{name}: {value} is not a share between 0 and 1")
    for name in ("confirm_s_min", "unproven_after_s", "stuck_s_min", "burn_window_s"):
        value = getattr(policy, name)
        if not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"policy.{name}: {value} is not a duration in seconds")
    counts = ("confirm_inferences_min", "error_min_n", "trial_tries", "download_attempts_max")
    for name in (*counts, "latency_min_n"):
        if getattr(policy, name) < 1:
            raise BadInputError(f"policy.{name}: must be at least 1")
    _check_limits(policy)
    if policy.worker_bytes_max < 0:
        raise BadInputError(f"policy.worker_bytes_max: {policy.worker_bytes_max} is negative")
    if not 0 <= policy.threads <= THREADS_MAX:
        raise BadInputError(f"policy.threads: {policy.threads} is not in 0..{THREADS_MAX}")
    check_cores(policy.cores, "policy.cores")
    shadows.check(policy.shadow, policy.split, overlap=policy.overlap)
    return policy


def check_cores(cores: Sequence[int], what: str) -> None:
    """Raises `BadInputError` unless these can be numbers of processor cores."""
    if len(set(cores)) != len(cores) or not all(0 <= core < CORES_MAX for core in cores):
        raise BadInputError(
            f"{what}: {list(cores)} are not different numbers of 0..{CORES_MAX - 1}",
            hint="numbers as in /proc/cpuinfo, for example [2, 3]",
        )


def _check_limits(policy: Policy) -> None:
    """Raises `BadInputError` for limits of latency and burn that cannot be obeyed."""
    limit_ms, ratio = policy.latency_p99_ms_max, policy.latency_ratio_max
    if limit_ms is not None and not (math.isfinite(limit_ms) and 0 < limit_ms <= LATENCY_MS_MAX):
        raise BadInputError(
            f"policy.latency_p99_ms_max: {limit_ms} is not above 0 and at most {LATENCY_MS_MAX:g}",
            hint="longer inferences are told from hanging ones by stuck_s_min",
        )
    if ratio is not None and not (math.isfinite(ratio) and ratio >= 1.0):
        raise BadInputError(
            f"policy.latency_ratio_max: {ratio} is not a number of at least 1",
            hint="1.5 allows half as much again as the bundle before",
        )
    if policy.burn_rate_max is not None and policy.burn_window_s < 1.0:
        raise BadInputError(f"policy.burn_window_s: {policy.burn_window_s} is below 1 second")
