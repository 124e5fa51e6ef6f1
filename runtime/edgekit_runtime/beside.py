"""Rules for a candidate beside what serves: when it is proven, when sampling stops. Pure.

In its *shadow* it is given what was answered, and must agree; in a *split* it answers a share of
the requests, and is judged like a bundle on trial. Too little traffic is said, never passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import msgspec

from edgekit.contracts.messages import Policy, SlotRef
from edgekit.contracts.shadow import Shadow
from edgekit_runtime import verdicts

LATENCIES_MIN = 50  # fewer tell no p99
P99 = 0.99


class Beside(msgspec.Struct, frozen=True):
    """What a candidate has shown beside what serves."""

    n: int = 0  # samples it was given, or requests it answered
    agreed: int = 0
    errors: int = 0  # it refused or failed
    nan: int = 0
    dropped: int = 0  # samples that found no room
    seconds: float = 0.0


class Readings(msgspec.Struct, frozen=True):
    """How the device is; None: it does not tell."""

    throttled: bool | None = None  # its clock is lowered for heat or supply
    memory_available: int | None = None  # bytes


class Ruling(Enum):
    """What is to become of the candidate."""

    WAIT = auto()
    PASS = auto()
    REFUSE = auto()
    UNPROVEN = auto()  # waits on, and it is to be said


def wanted(policy: Policy, active: SlotRef | None) -> bool:
    """Whether a candidate has something to stand beside, and is to."""
    return active is not None and (policy.shadow is not None or policy.split is not None)


def judge(policy: Policy, agreement_min: float | None, seen: Beside) -> tuple[Ruling, str]:
    """The ruling, and the reason of a refusal.

    Args:
        policy: what is asked.
        agreement_min: least share of samples that must agree; None in a split.
        seen: what there is.
    """
    asked = policy.shadow or policy.split
    if asked is None:
        return Ruling.PASS, ""  # it was, and is not any more
    reason = verdicts.rates(policy, seen.n, seen.errors, seen.nan, enough=asked.inferences_min)
    if policy.shadow is not None and not reason:
        # Beyond help once even agreement in all that is still to come would not reach the share.
        limit = 1.0 if agreement_min is None else agreement_min
        allowed = (1.0 - limit) * max(seen.n, asked.inferences_min)
        if seen.n - seen.agreed > allowed + 1e-9:
            reason = (
                f"agrees with what serves in {seen.agreed} of {seen.n} samples, "
                f"asked are {limit:.4g} of {asked.inferences_min} or more"
            )
    if reason:
        where = "in the shadow" if policy.shadow is not None else "in the split"
        return Ruling.REFUSE, f"{where}: {reason}"
    if seen.n >= asked.inferences_min:
        return (Ruling.PASS if seen.seconds >= asked.seconds_min else Ruling.WAIT), ""
    late = seen.seconds >= asked.unproven_after_s
    return (Ruling.UNPROVEN if late else Ruling.WAIT), ""


def suspended(shadow: Shadow, readings: Readings, before: float | None, now: float | None) -> str:
    """Why no samples are to be taken; empty when they may be.

    Args:
        shadow: the limits.
        readings: how the device is.
        before: p99 of what serves without a candidate beside it, seconds.
        now: the same with it.
    """
    if readings.throttled:
        return "hot: the processor is throttled"
    available = readings.memory_available
    if available is not None and available < shadow.memory_bytes_min:
        return f"low on memory: {available} bytes available"
    if before is not None and now is not None and now > shadow.late_ratio_max * before:
        return f"late: answers take {now * 1e3:.3g} ms at the p99, {before * 1e3:.3g} ms before"
    return ""


def p99_s(latencies_s: Sequence[float]) -> float | None:
    """The p99; None when there are too few."""
    if len(latencies_s) < LATENCIES_MIN:
        return None
    ordered = sorted(latencies_s)
    return ordered[min(len(ordered) - 1, int(len(ordered) * P99))]
