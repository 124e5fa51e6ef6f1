"""The deployment machine as one total table: (state, event) -> state, or IGNORED. Pure.

The planner proposes, this table permits: an event the table ignores leaves the state alone. A test
requires an entry for every pair.
"""

from __future__ import annotations

from enum import Enum

from edgekit.contracts.states import SlotState as S


class Event(str, Enum):
    """What can happen to one model's deployment."""

    ASSIGN = "assign"  # another bundle is desired
    FETCHED = "fetched"  # every blob of the candidate is on disk
    VERIFIED = "verified"  # re-read from disk, complete, and fit for this device
    TEST = "test"  # the golden set is about to be replayed
    SHADOW = "shadow"  # the candidate is to see sampled inputs first
    ACTIVATE = "activate"  # the candidate takes over on trial
    REINSTATE = "reinstate"  # the candidate takes over, proven here before
    CONFIRM = "confirm"  # enough traffic and time without a reason to go back
    REFUSE = "refuse"  # the candidate is unfit; what serves keeps serving
    REVERT = "revert"  # the active bundle is unfit; the fallback takes over
    STRAND = "strand"  # nothing is left that can serve
    RESUME_TRIAL = "resume_trial"  # the candidate is withdrawn, the active one is on trial
    RESUME = "resume"  # the active one is desired after all, and proven
    REMOVE = "remove"  # the model is no longer desired here


IGNORED = None

_COLUMNS = (
    S.EMPTY, S.FETCHING, S.STAGED, S.VERIFIED, S.SELF_TEST,
    S.SHADOW, S.TRIAL, S.CONFIRMED, S.ROLLED_BACK, S.SAFE,
)  # fmt: skip
_0, _F, _G, _V, _S, _H, _T, _C, _R, _X = _COLUMNS
__ = IGNORED

# Columns as above. One event a line; a blank is an event that cannot matter in that state.
# fmt: off
_ROWS: dict[Event, tuple[S | None, ...]] = {
    #                   _0  _F  _G  _V  _S  _H  _T  _C  _R  _X
    Event.ASSIGN:       (_F, _F, _F, _F, _F, _F, _F, _F, _F, _F),
    Event.FETCHED:      (__, _G, __, __, __, __, __, __, __, __),
    Event.VERIFIED:     (__, __, _V, __, __, __, __, __, __, __),
    Event.TEST:         (__, __, __, _S, __, __, __, __, __, __),
    Event.SHADOW:       (__, __, __, __, _H, __, __, __, __, __),
    Event.ACTIVATE:     (__, __, __, __, _T, _T, __, __, __, __),
    Event.REINSTATE:    (__, __, __, __, _C, _C, __, __, __, __),
    Event.CONFIRM:      (__, __, __, __, __, __, _C, __, __, __),
    Event.REFUSE:       (__, _R, _R, _R, _R, _R, __, __, __, __),
    # While a candidate is being prepared the active bundle may fail too: the preparation goes on.
    Event.REVERT:       (__, _F, _G, _V, _S, _H, _R, _R, _R, __),
    Event.STRAND:       (__, _X, _X, _X, _X, _X, _X, _X, _X, _X),
    Event.RESUME_TRIAL: (__, _T, _T, _T, _T, _T, __, __, __, __),
    Event.RESUME:       (__, _C, _C, _C, _C, _C, __, __, _C, __),
    Event.REMOVE:       (_0, _0, _0, _0, _0, _0, _0, _0, _0, _0),
}
# fmt: on

TABLE: dict[tuple[S, Event], S | None] = {
    (state, event): row[column]
    for event, row in _ROWS.items()
    for column, state in enumerate(_COLUMNS)
}


def next_state(state: S, event: Event) -> S | None:
    """The state after ``event``, or IGNORED."""
    return TABLE[state, event]
