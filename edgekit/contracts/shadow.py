"""A candidate beside the bundle that serves: in its shadow, or answering a share of the requests.

Both come between self-test and trial, and only when the policy asks for one of them.
"""

from __future__ import annotations

import math
from enum import Enum

import msgspec

from edgekit.contracts.errors import BadInputError

ABS, REL = 1e-3, 0.05  # of the build's own comparison, too


class ShadowMode(str, Enum):
    """How the candidate sees live inputs."""

    LIVE = "live"  # as they come, both bundles in memory
    REPLAY = "replay"  # collected first; both are in memory only while they are replayed


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate runs on a share of what was answered, after it was answered.

    ``agreement_min`` is the least share of samples on which it agrees with what serves; None: the
    bundle says it, as its build found it, tolerances included. Classes agree when the best one is
    the same, other values within ``abs + rel * |live|``.
    """

    share: float = 0.1  # of the answers that are compared
    inferences_min: int = 300  # 300 pairs tell a share to 2.5 points
    seconds_min: float = 600.0
    unproven_after_s: float = 86400.0  # too little traffic for so long: reported, not activated
    agreement_min: float | None = None
    abs: float = ABS
    rel: float = REL
    mode: ShadowMode = ShadowMode.LIVE
    late_ratio_max: float = 2.0  # p99 of the answers against before: sampling stops above
    memory_bytes_min: int = 64 * 1024 * 1024  # left on the device: sampling stops below
    replay_bytes_max: int = 4 * 1024 * 1024  # samples held in memory at once


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate answers a share of the requests; which ones follows from their ids."""

    share: float = 0.1
    inferences_min: int = 1000  # answered by the candidate
    seconds_min: float = 1800.0
    unproven_after_s: float = 86400.0


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """``shadow.json`` of a bundle: how far this variant agreed with the original at its build.

    ``agreement_min`` is the lower confidence bound of ``agreement`` over ``n`` samples.
    """

    schema: int = 1
    n: int
    agreement: float
    agreement_min: float
    abs: float = ABS
    rel: float = REL


def check(shadow: Shadow | None, split: Split | None, *, overlap: bool) -> None:
    """Return when both can be obeyed; without ``overlap`` there is no memory for two bundles.

    Raises:
        BadInputError: names the field.
    """
    if shadow is not None and split is not None:
        raise BadInputError(
            "policy.split: not together with policy.shadow",
            hint="roll out once with the one, then with the other",
        )
    if not overlap and (split is not None or (shadow and shadow.mode is not ShadowMode.REPLAY)):
        raise BadInputError(
            "policy.overlap: false with a split or a live shadow, which hold two bundles",
            hint='policy.shadow with mode "replay" needs memory for one',
        )
    if shadow is not None:
        _check_shadow(shadow)
    if split is not None:
        _check_common(split, "policy.split")
        if split.share >= 1:
            raise BadInputError("policy.split.share: 1 leaves nothing to what serves")


def _check_shadow(shadow: Shadow) -> None:
    _check_common(shadow, "policy.shadow")
    least = shadow.agreement_min
    if least is not None and not 0.0 < least <= 1.0:
        raise BadInputError(f"policy.shadow.agreement_min: {least} is not in (0, 1]")
    for name in ("abs", "rel"):
        value = getattr(shadow, name)
        if not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"policy.shadow.{name}: {value} is not a tolerance")
    if not (math.isfinite(shadow.late_ratio_max) and shadow.late_ratio_max > 1):
        raise BadInputError(f"policy.shadow.late_ratio_max: {shadow.late_ratio_max} is not above 1")
    if shadow.memory_bytes_min < 0:
        raise BadInputError(f"policy.shadow.memory_bytes_min: {shadow.memory_bytes_min}: negative")
    if not 65536 <= shadow.replay_bytes_max <= 1 << 30:
        raise BadInputError(
            f"policy.shadow.replay_bytes_max: {shadow.replay_bytes_max} is not in 64 KiB..1 GiB"
        )


def _check_common(found: Shadow | Split, field: str) -> None:
    if not (math.isfinite(found.share) and 0.0 < found.share <= 1.0):
        raise BadInputError(f"{field}.share: {found.share} is not in (0, 1]")
    if found.inferences_min < 1:
        raise BadInputError(f"{field}.inferences_min: must be at least 1")
    for name in ("seconds_min", "unproven_after_s"):
        value = getattr(found, name)
        if not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"{field}.{name}: {value} is not a duration in seconds")
    if found.unproven_after_s < found.seconds_min:
        raise BadInputError(
            f"{field}.unproven_after_s: {found.unproven_after_s:g} is before "
            f"{field}.seconds_min, {found.seconds_min:g}"
        )
