"""What becomes of a record. A record is a dict; each function gives a new one. Pure."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs the supervisor a tenth of its memory
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

EXIT_SWITCH = 75  # EX_TEMPFAIL: an agent's way to say "start what I asked for"
TRIES = 3
REPORT_S = 300.0  # lower: a board that compiles engines at its first start is called broken
CONFIRM_S = 600.0
CRASHES_MAX = 5  # of a confirmed runtime within CRASH_WINDOW_S: then its fallback takes over
CRASH_WINDOW_S = 600.0
BACKOFF_S_BASE, BACKOFF_S_MAX = 0.5, 60.0
FAILED_MAX = 8


def fresh(active: str, note: str = "") -> dict[str, Any]:
    """The record of a device that has just this runtime."""
    return {
        "schema": 1, "active": active, "fallback": "", "confirmed": False, "tries": 0,
        "report_s": REPORT_S, "confirm_s": CONFIRM_S, "token": "", "request": "", "failed": {},
        "note": note,
    }  # fmt: skip


def adopt(record: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """What ``request`` makes of ``record``; the same request never counts twice."""
    digest, token = request["digest"], request.get("token", "")
    new = {**record, "request": request["id"]}
    failure = record["failed"].get(digest)
    refused = failure is not None and failure["token"] == token
    if request["id"] == record["request"] or digest == record["active"] or refused:
        return new
    # One that was able to ask is better than nothing to go back to, proven or not.
    proven = record["confirmed"] or not record["fallback"]
    keep = record["active"] if proven else record["fallback"]
    new.update(
        active=digest,
        fallback="" if keep == digest else keep,
        confirmed=digest == record["fallback"],  # proven here before
        tries=max(1, int(request.get("tries", TRIES))),
        report_s=float(request.get("report_s", REPORT_S)),
        confirm_s=float(request.get("confirm_s", CONFIRM_S)),
        token=token,
        failed={key: value for key, value in record["failed"].items() if key != digest},
        note="",
    )
    return new


def installed(record: Mapping[str, Any], current: str) -> dict[str, Any]:
    """What an installer left as ``current`` is tried, unless the record knows it already."""
    known = {"", record["active"], record["fallback"], *record["failed"]}
    if current in known:
        return dict(record)
    return adopt(record, {"id": f"installed/{current}", "digest": current})


def begin(record: Mapping[str, Any], last: str, at: float) -> dict[str, Any]:
    """The record with which the next start is made: a try spent, or the trial lost."""
    if record["confirmed"] or not record["fallback"]:
        return dict(record)
    if record["tries"] <= 0:
        return revert(record, f"every try was spent: {last or 'it never reported'}", at)
    return {**record, "tries": record["tries"] - 1}


def revert(record: Mapping[str, Any], reason: str, at: float) -> dict[str, Any]:
    """The runtime before runs again; this one is not tried again without a new token."""
    before = record["failed"].get(record["active"], {"attempts": 0})
    failure = {
        "reason": reason[:500],
        "at": at,
        "attempts": before["attempts"] + 1,
        "token": record["token"],
    }
    failed = {**record["failed"], record["active"]: failure}
    newest = sorted(failed.items(), key=lambda item: item[1]["at"])[-FAILED_MAX:]
    return {
        **record, "active": record["fallback"], "fallback": "", "confirmed": True, "tries": 0,
        "failed": dict(newest), "note": f"rolled back: {reason}"[:500],
    }  # fmt: skip


def backoff_s(ends: int) -> float:
    """Pause before the next start after ``ends`` ends of late; the first is immediate."""
    return 0.0 if ends <= 1 else min(BACKOFF_S_MAX, BACKOFF_S_BASE * 2.0 ** (ends - 2))
