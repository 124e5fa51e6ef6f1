"""What the processor is, read from the system; no rules."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_MODEL = Path("/proc/device-tree/model")


def arch() -> str:
    """Machine name as the kernel says it, e.g. ``x86_64`` or ``aarch64``."""
    return platform.machine()


@lru_cache(maxsize=1)
def isa_flags() -> tuple[str, ...]:
    """Sorted CPU feature flags; empty where the system does not tell."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return tuple(sorted(set(value.split())))
    return ()


def board() -> str:
    """Board model of the device tree, e.g. ``Raspberry Pi 5 Model B``; empty elsewhere."""
    try:
        return _MODEL.read_text(encoding="utf-8", errors="replace").rstrip("\0\n")
    except OSError:
        return ""
