"""What engines say when they fail, cut to what fits one line."""

from __future__ import annotations

import re

_CHARS_MAX = 300
# OpenVINO begins each message with "Exception from src/…/file.cpp:123:" or "Check 'x' failed at …".
_ORIGIN = re.compile(r"^(Exception from \S+:\d+:|Check '.*' failed at \S+:\d+:)\s*$")


def first_line(exc: Exception) -> str:
    """The first line of ``exc`` that says something."""
    lines = [line.strip() for line in str(exc).splitlines()]
    said = [line for line in lines if line and not _ORIGIN.match(line)]
    return (said or [type(exc).__name__])[0][:_CHARS_MAX]
