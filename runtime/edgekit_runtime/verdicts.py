"""Why a bundle must go: what was counted on trial, or lately, against its policy. Pure.

A rate is judged from ``error_min_n`` inferences on, a latency from ``latency_min_n``; only what is
certainly above a limit counts, never a figure that the width of a bucket could explain. A limit
that was not judged yet keeps a bundle from being confirmed (`measured`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edgekit.contracts.messages import Policy
from edgekit.stats.histogram import LATENCY_EDGES_US

QUANTILE = 0.99
UNKNOWN = "; whether the processor was throttled is unknown here"


class Trial(msgspec.Struct, frozen=True):
    """What has been counted since the active bundle went on trial."""

    n: int = 0
    errors: int = 0
    nan: int = 0
    seconds: float = 0.0
    latency: tuple[int, ...] = ()  # counts by LATENCY_EDGES_US, while not throttled
    before: tuple[int, ...] = ()  # likewise, of the bundle that served before it
    throttled_n: int = 0  # answered while throttled: not in ``latency``
    throttling_known: bool = True


class Lately(msgspec.Struct, frozen=True):
    """What was counted of a confirmed bundle within its policy's burn window."""

    n: int = 0
    errors: int = 0
    nan: int = 0
    seconds: float = 0.0


def unfit(policy: Policy, trial: Trial) -> str:
    """Why the bundle on trial must go; empty when there is no reason."""
    enough = policy.confirm_inferences_min
    failing = rates(policy, trial.n, trial.errors, trial.nan, enough=enough)
    return failing or _latency(policy, trial)


def burns(policy: Policy, lately: Lately) -> str:
    """Why a confirmed bundle must give way to its fallback; empty when it need not."""
    limit = policy.burn_rate_max
    if limit is None or lately.n < policy.error_min_n:
        return ""
    # One that failed and one that answered NaN are both no use to whoever asked.
    bad = lately.errors + lately.nan
    if bad / lately.n <= limit:
        return ""
    return (
        f"error burn: {bad} of {lately.n} inferences failed or were NaN within "
        f"{lately.seconds:.0f} s, allowed {limit:g}"
    )


def rates(policy: Policy, n: int, errors: int, nan: int, *, enough: int) -> str:
    """Why too many of ``n`` inferences failed; empty when there is no reason.

    Judged from ``error_min_n`` on, or from ``enough``: as many as let a bundle pass. What passes
    has been judged.
    """
    if n < min(policy.error_min_n, enough):
        return ""
    for what, count, limit in (
        ("error", errors, policy.error_rate_max),
        ("NaN", nan, policy.nan_rate_max),
    ):
        if count / n > limit:
            return f"{what} rate {count / n:.4f} over {n} inferences, allowed {limit:g}"
    return ""


def measured(policy: Policy, trial: Trial) -> bool:
    """Whether every limit that the policy declares, and this device can judge, was judged."""
    compared = policy.latency_ratio_max is not None and _comparable(policy, trial)
    declared = policy.latency_p99_ms_max is not None or compared
    return not declared or sum(trial.latency) >= policy.latency_min_n


def _comparable(policy: Policy, trial: Trial) -> bool:
    return sum(trial.before) >= policy.latency_min_n


def _latency(policy: Policy, trial: Trial) -> str:
    timed = sum(trial.latency)
    if timed < policy.latency_min_n:
        return ""
    least_ms, _ = quantile_ms(trial.latency, QUANTILE)
    over = f"over {timed} inferences{'' if trial.throttling_known else UNKNOWN}"
    limit_ms = policy.latency_p99_ms_max
    if limit_ms is not None and least_ms >= limit_ms:
        return f"latency: p99 at least {least_ms:.4g} ms {over}, allowed {limit_ms:g} ms"
    ratio = policy.latency_ratio_max
    if ratio is not None and _comparable(policy, trial):
        _, most_ms = quantile_ms(trial.before, QUANTILE)
        if least_ms > ratio * most_ms:
            return (
                f"latency: p99 at least {least_ms:.4g} ms {over}, at most {most_ms:.4g} ms of the "
                f"bundle before, allowed {ratio:g} times that"
            )
    return ""


def quantile_ms(counts: Sequence[int], q: float) -> tuple[float, float]:
    """Edges of the bucket that holds quantile ``q``: it lies between them for certain."""
    rank, seen = max(1, math.ceil(q * sum(counts))), 0
    for index, number in enumerate(counts):
        seen += number
        if seen >= rank:
            low = LATENCY_EDGES_US[index - 1] if index else 0.0
            high = LATENCY_EDGES_US[index] if index < len(LATENCY_EDGES_US) else math.inf
            return low / 1e3, high / 1e3
    raise ValueError("no counts")
