"""The supervisor's record as the agent reads it, and what the manager is told of it.

Only the supervisor writes it (`edgekit_runtime.supervisor.book`); the file format is that of
`edgekit_runtime.twocopy`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgekit_runtime.ports import Disk
from edgekit_runtime.twocopy import TwoCopy

NAME = "runtime"
REQUEST = "runtime.request"


class RuntimeFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a runtime is quarantined here."""

    reason: str
    at: float
    attempts: int = 1
    token: str = ""


class RuntimeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which runtime runs. ``confirmed``: it has proven itself here."""

    schema: int = 1
    active: str
    fallback: str = ""
    confirmed: bool = False
    tries: int = 0
    token: str = ""
    failed: dict[str, RuntimeFailure] = {}
    note: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent asks the supervisor for."""

    id: str
    digest: str
    token: str
    tries: int
    report_s: float
    confirm_s: float


def read(disk: Disk, state_dir: Path) -> RuntimeRecord | None:
    """The record; None where no supervisor ever ran."""
    return TwoCopy(disk, state_dir, NAME, RuntimeRecord).peek().value


def report(
    record: RuntimeRecord, refused: dict[str, RuntimeFailure], candidate: str, note: str
) -> dict[str, Any]:
    """``reported.runtime`` (protocol §4.8)."""
    if candidate:
        state = "FETCHING"
    elif not record.confirmed and record.fallback:
        state = "TRIAL"
    elif record.note:
        state = "ROLLED_BACK"
    else:
        state = "CONFIRMED"
    failed = {**refused, **record.failed}
    return {
        "state": state,
        "active": record.active,
        "fallback": record.fallback,
        "candidate": candidate,
        "failed": {digest: msgspec.to_builtins(failure) for digest, failure in failed.items()},
        "note": note or record.note,
    }
