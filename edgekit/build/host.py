"""Facts of the machine that builds: what can be validated natively, and part of cache keys."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgekit.build.target import TargetProfile, Validation

_ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Host:
    """Architecture, CPU flags and CPU name."""

    arch: str
    flags: frozenset[str]
    cpu: str

    def runs(self, target: TargetProfile) -> bool:
        """Whether this machine has the target's architecture and every instruction it needs.

        Of a GPU nothing is known here, so no machine counts as a Jetson.
        """
        return (
            target.sm is None
            and self.arch == target.arch.value
            and all(any(flag in self.flags for flag in needed.split("|")) for needed in target.isa)
        )

    def facts(self) -> dict[str, str]:
        """Identity of the CPU class, for cache keys and records."""
        flags = hashlib.sha256(" ".join(sorted(self.flags)).encode()).hexdigest()[:16]
        return {"arch": self.arch, "cpu": self.cpu, "flags": flags}

    def validation(self, target: TargetProfile) -> Validation:
        """The highest level at which this machine can validate for ``target``."""
        return Validation.NATIVE if self.runs(target) else Validation.NONE


def parse_cpuinfo(lines: Iterable[str]) -> tuple[frozenset[str], str]:
    """CPU flags and name from ``/proc/cpuinfo``; the first core speaks for all."""
    flags: frozenset[str] = frozenset()
    name = ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
        elif key.strip() == "model name" and not name:
            name = value.strip()
    return flags, name


def detect() -> Host:
    """This machine."""
    machine = platform.machine().lower()
    try:
        with _CPUINFO.open(encoding="utf-8", errors="replace") as stream:
            flags, name = parse_cpuinfo(stream)
    except OSError:
        # No /proc (macOS): nothing is known to be native, which is the safe side.
        flags, name = frozenset(), ""
    return Host(_ARCHES.get(machine, machine), flags, name or platform.processor() or machine)
