"""The result of a gate, alike for build gates, device checks and rollout gates.

Only declared gates exist, and a declared gate that was not measured is never a pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec


class Outcome(str, Enum):
    """Tri-state: a gate that cannot tell says so instead of passing."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One gate's figures. Unmeasured figures are None, never zero."""

    metric: str
    outcome: Outcome
    reason: str
    threshold: float | None = None
    estimate: float | None = None
    low: float | None = None  # bounds of the estimate's confidence interval
    high: float | None = None
    n_devices: int = 0
    n: int = 0  # inferences or samples the estimate rests on
    missing: float = 0.0  # share of what should have been measured and was not, 0..1


def not_measured(metric: str, why: str, *, threshold: float | None = None) -> Verdict:
    """The verdict of a declared gate whose metric is absent: a failure (fail closed)."""
    return Verdict(
        metric=metric,
        outcome=Outcome.FAIL,
        reason=f"not measured: {why}",
        threshold=threshold,
        missing=1.0,
    )


def combine(verdicts: Iterable[Verdict]) -> Outcome:
    """Any fail fails, else any inconclusive holds, else pass."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.INCONCLUSIVE if Outcome.INCONCLUSIVE in outcomes else Outcome.PASS
