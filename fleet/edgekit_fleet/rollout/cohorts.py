"""Who is in a wave: deterministic, random within strata, stored once drawn.

The order of devices within a rollout is that of ``sha256(rollout, device)``: the same on every
manager and after every restart, independent between rollouts, so that no device is always the
canary; alike for rollouts that name the same ``draw``, as those of one group must.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from edgekit_fleet.rollout.model import DeviceView
from edgekit_fleet.rollout.spec import RolloutSpec, Wave


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether every label of ``selector`` is present with that value."""
    return all(labels.get(key) == value for key, value in selector.items())


def target_of(view: DeviceView, targets: Iterable[str]) -> str | None:
    """The variant this device will pick: the first of its own targets that the release has."""
    offered = set(targets)
    return next((target for target in view.targets if target in offered), None)


def _rank(rollout: str, device: str) -> bytes:
    return hashlib.sha256(f"{rollout}\0{device}".encode()).digest()


def _proportional(strata: Mapping[str, list[str]], wanted: int) -> list[str]:
    """``wanted`` devices, spread over strata in proportion to their size (largest remainder)."""
    total = sum(len(members) for members in strata.values())
    wanted = min(wanted, total)
    shares = {key: wanted * len(members) / total for key, members in strata.items()}
    take = {key: math.floor(share) for key, share in shares.items()}
    by_remainder = sorted(strata, key=lambda key: (take[key] - shares[key], key))
    for key in by_remainder[: wanted - sum(take.values())]:
        take[key] += 1
    return [device for key, members in strata.items() for device in members[: take[key]]]


def draw(
    spec: RolloutSpec,
    wave: Wave,
    views: Mapping[str, DeviceView],
    exposed: Iterable[str],
    targets: Iterable[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw a wave.

    Args:
        spec: the rollout.
        wave: the wave to draw.
        views: all devices.
        exposed: devices that already have the release.
        targets: targets the release has variants for.

    Returns:
        Newly exposed devices and, for randomised waves, the devices that stay as control.
    """
    targets, taken = frozenset(targets), set(exposed)
    eligible = {
        device: target
        for device, view in views.items()
        if matches(view.labels, spec.eligible) and (target := target_of(view, targets)) is not None
    }
    fresh = sorted(
        (d for d in eligible if d not in taken), key=lambda d: _rank(spec.draw or spec.name, d)
    )
    if wave.selector is not None:
        selector = wave.selector
        return tuple(d for d in fresh if matches(views[d].labels, selector)), ()
    if wave.count is not None:
        wanted = wave.count
    else:
        goal = math.ceil(len(eligible | dict.fromkeys(taken, "")) * (wave.percent or 0.0) / 100.0)
        wanted = max(0, goal - len(taken))
    strata: dict[str, list[str]] = defaultdict(list)
    for device in fresh:
        strata[eligible[device]].append(device)
    chosen = _proportional(dict(sorted(strata.items())), wanted) if strata else []
    picked = set(chosen)
    return tuple(chosen), tuple(device for device in fresh if device not in picked)
