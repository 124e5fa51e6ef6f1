"""The rollout's state machine as one table: (status, event) -> status, total.

Every pair is listed; a test requires it. ``None`` means the event cannot concern that status and is
ignored (a terminal rollout ignores everything).
"""

from __future__ import annotations

from enum import Enum

from edgekit_fleet.rollout.model import Status


class Event(str, Enum):
    """What the core concluded from an observation."""

    PROGRESS = "progress"  # still installing or soaking
    WAVE_PASSED = "wave_passed"  # soak over, every gate passed, more waves to come
    LAST_WAVE_PASSED = "last_wave_passed"
    INCONCLUSIVE = "inconclusive"  # soak over, a gate cannot tell
    STOP = "stop"  # gate failed, abort rule met, held too long, operator
    ALL_BACK = "all_back"  # every exposed device runs what it ran before


_R, _H, _B = Status.RUNNING, Status.HOLDING, Status.ROLLING_BACK
_S, _D = Status.SUCCEEDED, Status.ROLLED_BACK
_E = Event

# fmt: off
TABLE: dict[tuple[Status, Event], Status | None] = {
    (_R, _E.PROGRESS):         _R,
    (_R, _E.WAVE_PASSED):      _R,
    (_R, _E.LAST_WAVE_PASSED): _S,
    (_R, _E.INCONCLUSIVE):     _H,
    (_R, _E.STOP):             _B,
    (_R, _E.ALL_BACK):         None,
    (_H, _E.PROGRESS):         _H,
    (_H, _E.WAVE_PASSED):      _R,
    (_H, _E.LAST_WAVE_PASSED): _S,
    (_H, _E.INCONCLUSIVE):     _H,
    (_H, _E.STOP):             _B,
    (_H, _E.ALL_BACK):         None,
    (_B, _E.PROGRESS):         _B,
    (_B, _E.WAVE_PASSED):      None,
    (_B, _E.LAST_WAVE_PASSED): None,
    (_B, _E.INCONCLUSIVE):     None,
    (_B, _E.STOP):             _B,
    (_B, _E.ALL_BACK):         _D,
    **dict.fromkeys([(status, event) for status in (_S, _D) for event in Event], None),
}
# fmt: on


def next_status(status: Status, event: Event) -> Status:
    """The status after ``event``; ignored events leave it as it is."""
    return TABLE[(status, event)] or status
