"""What an operator asks for: waves, gates, abort rules; all of it is checked when written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, get_args

import msgspec

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.ids import check_name
from edgekit.contracts.messages import Policy, check_group, check_policy

SPEC_BYTES_MAX = 64 * 1024
WAVES_MAX = 64


class Metric(str, Enum):
    """What a gate can measure."""

    # Against the concurrent randomised control cohort.
    ACCURACY_DROP = "accuracy_drop"  # control minus candidate, on delayed labels
    PREDICTION_SHIFT = "prediction_shift"  # largest change of a class's share
    CONFIDENCE_SHIFT = "confidence_shift"  # change of mean confidence, either way
    ERROR_RATE_INCREASE = "error_rate_increase"  # candidate minus control
    # Of the candidate cohort alone.
    ERROR_RATE = "error_rate"


COMPARISONS = frozenset(Metric) - {Metric.ERROR_RATE}


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pass when the upper bound of ``metric`` is at most ``max``, fail when the lower exceeds it.

    ``alpha`` is the error probability over *all* looks at this gate. Below ``n_min`` inferences (or
    labels) in either cohort, or with more than ``missing_max`` of a cohort silent, nothing is
    decided.
    """

    metric: Metric
    max: float
    alpha: float = 0.05
    n_min: int = 100
    missing_max: float = 0.34


class Failure(str, Enum):
    """Ways in which a device can fail a rollout."""

    FAILED = "failed"  # refused or rolled back the release by itself
    TIMED_OUT = "timed_out"  # neither confirmed nor failed within the wave's timeout
    ANY = "any"


class AbortRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stop when ``percent`` of a wave's devices, and at least ``min_n``, failed in this way."""

    failure: Failure = Failure.ANY
    percent: float
    min_n: int = 1


class Wave(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step outwards. Exactly one of ``selector``, ``percent``, ``count`` says who is in it.

    ``selector`` takes the devices whose labels match; ``percent`` (cumulative, of all eligible
    devices) and ``count`` (additional) draw at random within strata of equal target, so only they
    leave a comparable control cohort.
    """

    name: str
    selector: dict[str, str] | None = None
    percent: float | None = None
    count: int | None = None
    soak_s: float = 3600.0
    looks: int = 3  # gates are evaluated this often, evenly over the soak time
    timeout_s: float = 86400.0
    gates: tuple[Gate, ...] = ()

    @property
    def randomised(self) -> bool:
        """Whether the wave's devices were drawn at random."""
        return self.selector is None


class RolloutSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rollout of one release. ``hold_s_max`` bounds how long an inconclusive gate may hold it."""

    schema: int = 1
    name: str
    release: str
    waves: tuple[Wave, ...]
    eligible: dict[str, str] = {}  # only devices with these labels take part
    policy: Policy = Policy()
    abort: tuple[AbortRule, ...] = (AbortRule(percent=20.0),)
    retry_token: str = ""
    group: tuple[str, ...] = ()  # models that devices change together; each has its own rollout
    draw: str = ""  # rollouts of the same draw pick the same devices; default: the rollout's name
    hold_s_max: float | None = None


def parse(raw: bytes) -> RolloutSpec:
    """Decode and validate a spec in JSON.

    Raises:
        BadInputError: names the field.
    """
    spec = codec.decode(RolloutSpec, raw, what="rollout", bytes_max=SPEC_BYTES_MAX)
    _check_names(msgspec.json.decode(raw).get("policy", {}), Policy, "policy")
    return validate(spec)


def _check_names(given: Mapping[str, Any], kind: type[msgspec.Struct], field: str) -> None:
    """Devices ignore fields they do not know; whoever writes one has misspelt it."""
    known = {item.name: item.type for item in msgspec.structs.fields(kind)}
    for name, value in given.items():
        hint = "fields: " + ", ".join(known)
        _require(name in known, f"{field}.{name}", "is not known", hint)
        nested = next((one for one in get_args(known[name]) if _is_struct(one)), None)
        if nested is not None and isinstance(value, dict):
            _check_names(value, nested, f"{field}.{name}")


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _require(condition: bool, field: str, problem: str, hint: str | None = None) -> None:
    if not condition:
        raise BadInputError(f"rollout: {field}: {problem}", hint=hint)


def _share(value: float) -> bool:
    return math.isfinite(value) and 0.0 < value <= 1.0


def _check_gate(gate: Gate, wave: Wave, field: str) -> None:
    _require(_share(gate.max), f"{field}.max", f"{gate.max} is not in (0, 1]")
    _require(0.0 < gate.alpha < 0.5, f"{field}.alpha", f"{gate.alpha} is not in (0, 0.5)")
    _require(gate.n_min >= 1, f"{field}.n_min", "must be at least 1")
    _require(0.0 <= gate.missing_max < 1.0, f"{field}.missing_max", "is not in [0, 1)")
    if gate.metric not in COMPARISONS:
        return
    _require(
        wave.randomised,
        field,
        f"{gate.metric.value} compares with a control cohort, but wave {wave.name!r} is chosen by "
        "selector",
        "chosen devices are not comparable with the rest: use percent or count for this wave",
    )
    _require(
        wave.percent != 100.0,
        field,
        f"{gate.metric.value} needs a control cohort, and a 100 % wave leaves none",
        "put the comparison on an earlier wave",
    )


def _check_wave(wave: Wave, field: str, percent_before: float) -> None:
    check_name(wave.name, f"rollout: {field}.name")
    given = [value for value in (wave.selector, wave.percent, wave.count) if value is not None]
    _require(len(given) == 1, field, "needs exactly one of selector, percent, count")
    _require(wave.selector != {}, f"{field}.selector", "is empty", "name at least one label")
    if wave.percent is not None:
        ok = math.isfinite(wave.percent) and percent_before < wave.percent <= 100.0
        problem = f"{wave.percent} is not above {percent_before:g} and at most 100 (cumulative)"
        _require(ok, f"{field}.percent", problem)
    _require(wave.count is None or wave.count >= 1, f"{field}.count", "must be at least 1")
    _require(1 <= wave.looks <= 100, f"{field}.looks", "must be 1-100")
    for name in ("soak_s", "timeout_s"):
        value = getattr(wave, name)
        _require(math.isfinite(value) and value > 0, f"{field}.{name}", f"{value} is not positive")
    metrics = [gate.metric for gate in wave.gates]
    _require(len(set(metrics)) == len(metrics), f"{field}.gates", "a metric is declared twice")
    for index, gate in enumerate(wave.gates):
        _check_gate(gate, wave, f"{field}.gates[{index}]")


def validate(spec: RolloutSpec) -> RolloutSpec:
    """Return ``spec`` when every part of it can be obeyed.

    Raises:
        BadInputError: names the field and, where there is one, the mend.
    """
    _require(spec.schema == 1, "schema", f"{spec.schema} is not known (only 1)")
    check_name(spec.name, "rollout")
    check_name(spec.release, "release")
    check_policy(spec.policy)
    for model in spec.group:
        check_name(model, "rollout: group")
    if spec.group:
        check_group(spec.group[0], spec.group)
        drawn = any(wave.randomised for wave in spec.waves)
        _require(
            bool(spec.draw) or not drawn,
            "draw",
            "is missing, and the group's rollouts would pick different devices",
            "give the rollouts of all its models the same draw",
        )
    _require(1 <= len(spec.waves) <= WAVES_MAX, "waves", f"needs 1-{WAVES_MAX}")
    names = [wave.name for wave in spec.waves]
    _require(len(set(names)) == len(names), "waves", "two have the same name")
    percent = 0.0
    for index, wave in enumerate(spec.waves):
        _check_wave(wave, f"waves[{index}]", percent)
        percent = wave.percent if wave.percent is not None else percent
    for index, rule in enumerate(spec.abort):
        ok = math.isfinite(rule.percent) and 0.0 < rule.percent <= 100.0
        _require(ok, f"abort[{index}].percent", f"{rule.percent} is not in (0, 100]")
        _require(rule.min_n >= 1, f"abort[{index}].min_n", "must be at least 1")
    hold = spec.hold_s_max
    _require(hold is None or (math.isfinite(hold) and hold > 0), "hold_s_max", "is not positive")
    return spec
