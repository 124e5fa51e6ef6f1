"""The outcome of one check."""

from __future__ import annotations

from enum import Enum

import msgspec


class Status(str, Enum):
    """How it came out."""

    OK = "ok"
    WARN = "warn"  # works, but not as it should, or not for long
    FAIL = "fail"  # the device cannot do its work


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check; ``mend`` says what to do, and is empty when there is nothing to do."""

    name: str
    status: Status
    detail: str
    mend: str = ""


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name=name, status=Status.OK, detail=detail)


def warn(name: str, detail: str, mend: str) -> Check:
    """Not as it should be."""
    return Check(name=name, status=Status.WARN, detail=detail, mend=mend)


def fail(name: str, detail: str, mend: str) -> Check:
    """Broken."""
    return Check(name=name, status=Status.FAIL, detail=detail, mend=mend)
