"""Readings of this and other processes from ``/proc``; None where the system does not tell."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def rss_bytes(pid: int | None = None) -> int | None:
    """Resident memory of a process, this one by default."""
    try:
        text = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def call(name: str) -> None:
    """What this process is called in ``ps -o comm`` and the like; 15 bytes at most."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="ascii")


def children(pid: int, name: str) -> list[int]:
    """Processes that ``pid`` started and that are called ``name``."""
    found: set[int] = set()
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.update(map(int, (task / "children").read_text(encoding="ascii").split()))
    except (OSError, ValueError):
        return []
    return sorted(child for child in found if _called(child) == name)


def _called(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def data_bytes() -> int | None:
    """Private writable memory of this process: what RLIMIT_DATA counts."""
    return _status_bytes("VmData")


def peak_bytes() -> int | None:
    """The most memory that was resident in this program.

    `getrusage` knows it too, but begins with what the process that started this one had resident.
    """
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in text.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def memory_available() -> int | None:
    """Bytes that this device could still give to processes without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
        line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def age_s() -> float | None:
    """Seconds since this process was started by the kernel."""
    try:
        text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        ticks = int(text.rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
