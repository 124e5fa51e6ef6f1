"""What the controller needs from the outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from edgekit.contracts.release import Release
from edgekit_fleet.rollout.model import Assignment, Observation, RolloutState
from edgekit_fleet.rollout.spec import RolloutSpec


class StoredRollout(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as stored; compare-and-set on ``version`` (commits so far) fences stale writers."""

    spec: RolloutSpec
    release: Release
    state: RolloutState
    version: int


class RolloutStore(Protocol):
    """Durable side of rollouts; every method is one transaction."""

    def open_rollouts(self) -> list[StoredRollout]:
        """Every rollout that is not in a terminal state."""
        ...

    def observe(self, rollout: StoredRollout, since: float | None) -> Observation:
        """Views of all devices of the tenant, for the release's model.

        Evidence counts windows of that model whose ``start >= since`` (no evidence when None):
        ``candidate`` those whose digest is one of the release's variants, ``other`` the rest.
        ``abort_requested`` is the operator's reason, if any.
        """
        ...

    def commit(
        self, rollout: StoredRollout, state: RolloutState, assignments: Sequence[Assignment]
    ) -> bool:
        """Store ``state`` and apply ``assignments`` to the twins (gen + 1 each) in one transaction.

        Returns:
            False, and nothing is changed, when ``rollout.version`` is no longer the stored one.
        """
        ...
