"""Carries out what the core decides: load, observe, step, commit. Keeps nothing in memory.

Each tick re-reads everything, so a manager that was killed at any point goes on where the
database stands. A commit that lost the race against another writer is dropped; the next tick
plans anew from what that writer stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgekit_fleet.rollout import core
from edgekit_fleet.rollout.ports import RolloutStore

log = logging.getLogger(__name__)


def tick(store: RolloutStore, clock: Callable[[], float]) -> int:
    """Advance every open rollout by one step; returns how many changed."""
    changed = 0
    for rollout in store.open_rollouts():
        seen = store.observe(rollout, core.soak_began(rollout.state))
        state, assignments = core.step(rollout.spec, rollout.release, rollout.state, seen, clock())
        if state == rollout.state and not assignments:
            continue
        if not store.commit(rollout, state, assignments):
            log.warning("rollout %s: another writer was faster, planning anew", rollout.spec.name)
            continue
        changed += 1
        if state.status is not rollout.state.status:
            log.info(
                "rollout %s: %s -> %s %s",
                rollout.spec.name,
                rollout.state.status.value,
                state.status.value,
                state.reason,
            )
    return changed
