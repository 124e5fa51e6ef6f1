"""Input/output contract of a model version: what goes in, what comes out, what it may cost.

Derived from the graph at registration, completed by the user, shipped in every bundle and
enforced on the device. `validate` is the only place that says whether a contract makes sense.
"""

from __future__ import annotations

import math
from enum import Enum

import msgspec

from edgekit.contracts.errors import BadInputError


class OnViolation(str, Enum):
    """What the device does with a value the contract forbids."""

    REJECT = "reject"
    CLAMP = "clamp"
    FLAG = "flag"


class Task(str, Enum):
    """What an output means; decides the default metric."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    REGRESSION = "regression"
    EMBEDDING = "embedding"
    ANOMALY_SCORE = "anomaly_score"
    OTHER = "other"


class Normalise(msgspec.Struct, frozen=True, kw_only=True, tag="normalise"):
    """``(x - mean) / std`` along ``axis``; one value each, or one per index of the axis."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int = -1


class Transpose(msgspec.Struct, frozen=True, kw_only=True, tag="transpose"):
    """Reorder axes (layout change), batch axis included."""

    order: tuple[int, ...]


PreprocessStep = Normalise | Transpose


class InputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input tensor. Named dimensions are dynamic; the first is the batch unless fixed."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str | None = None
    unit: str | None = None
    range: tuple[float, float] | None = None  # physically possible values, inclusive
    on_nan: OnViolation = OnViolation.REJECT
    on_range: OnViolation = OnViolation.FLAG
    age_s_max: float | None = None  # since it was measured; an age nobody tells is too old
    on_age: OnViolation = OnViolation.FLAG
    preprocess: tuple[PreprocessStep, ...] = ()


class OutputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One output tensor. For classification, the last axis runs over ``labels``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    task: Task = Task.OTHER
    labels: tuple[str, ...] = ()


class QualityBudget(msgspec.Struct, frozen=True, kw_only=True):
    """How much quality a variant may lose against the original.

    ``drop_max`` is in the metric's own unit (0.02 top-1 = two points); the gate compares it with
    the upper bound of the paired drop at ``confidence``.
    """

    metric: str
    drop_max: float
    confidence: float = 0.95


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Resource limits for one target; None means not declared, hence not gated."""

    latency_ms_p95_max: float | None = None
    size_bytes_max: int | None = None
    memory_bytes_max: int | None = None


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """The whole contract. ``budgets`` is keyed by target name, ``*`` for all others."""

    schema: int = 1
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    quality: QualityBudget
    budgets: dict[str, Budget] = {}

    def budget_for(self, target: str) -> Budget:
        """Limits for ``target``; an empty budget when none is declared."""
        return self.budgets.get(target) or self.budgets.get("*") or Budget()


def _require(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise BadInputError(f"contract: {field}: {problem}", hint="correct the contract and retry")


def _check_input(spec: InputSpec) -> None:
    field = f"input {spec.name!r}"
    _require(bool(spec.shape), field, "has no dimensions")
    for dim in spec.shape:
        _require(not isinstance(dim, int) or dim > 0, field, f"dimension {dim} is not positive")
    if spec.range is not None:
        low, high = spec.range
        finite = math.isfinite(low) and math.isfinite(high)
        _require(finite and low < high, field, f"range {low}..{high} is empty or not finite")
    _require(
        spec.on_nan is not OnViolation.CLAMP or spec.range is not None,
        field,
        "on_nan=clamp needs a range to clamp into",
    )
    limit = spec.age_s_max
    _require(
        limit is None or (math.isfinite(limit) and limit > 0),
        field,
        f"age_s_max {limit} is not a positive number of seconds",
    )
    _require(spec.on_age is not OnViolation.CLAMP, field, "on_age=clamp: an age cannot be clamped")
    for step in spec.preprocess:
        if isinstance(step, Normalise):
            _require(all(s > 0 for s in step.std), field, "normalise: std must be positive")


def validate(contract: Contract) -> Contract:
    """Return ``contract`` when it is consistent.

    Raises:
        BadInputError: names the field. A threshold that makes no sense is refused here, when it is
            written, so that no later reader has to ignore it.
    """
    _require(contract.schema == 1, "schema", f"{contract.schema} is not known (only 1)")
    _require(bool(contract.inputs), "inputs", "at least one is needed")
    _require(bool(contract.outputs), "outputs", "at least one is needed")
    names = [spec.name for spec in contract.inputs]
    _require(len(set(names)) == len(names), "inputs", "two have the same name")
    names = [spec.name for spec in contract.outputs]
    _require(len(set(names)) == len(names), "outputs", "two have the same name")
    for spec in contract.inputs:
        _check_input(spec)
    quality = contract.quality
    _require(
        math.isfinite(quality.drop_max) and quality.drop_max > 0,
        "quality.drop_max",
        f"{quality.drop_max} is not a positive number",
    )
    _require(
        0.5 <= quality.confidence < 1.0,
        "quality.confidence",
        f"{quality.confidence} is not in [0.5, 1)",
    )
    for target, budget in contract.budgets.items():
        for name in ("latency_ms_p95_max", "size_bytes_max", "memory_bytes_max"):
            value = getattr(budget, name)
            ok = value is None or (math.isfinite(value) and value > 0)
            _require(ok, f"budgets[{target}].{name}", f"{value} is not a positive number")
    return contract
