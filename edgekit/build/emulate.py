"""Emulators: another CPU's instructions on this machine, for results, never for speed."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from edgekit.build.host import Host
from edgekit.build.target import Arch, TargetProfile
from edgekit.contracts.errors import UnavailableError

# User-mode emulation runs this very interpreter with its packages: what is emulated is what ships.
_PROGRAMS = ("qemu-x86_64", "qemu-x86_64-static")
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Emulator:
    """A command to put in front of another, and what it pretends to be."""

    command: tuple[str, ...]
    version: str

    @property
    def facts(self) -> str:
        """Program, version and CPU model, for keys and records."""
        return f"{self.version} {' '.join(self.command[1:])}"


def find(target: TargetProfile, host: Host) -> Emulator | None:
    """An emulator of ``target``'s CPU; None when the profile names none or none is installed.

    Raises:
        UnavailableError: the program is there and does not start.
    """
    if target.emulator is None or target.arch is not Arch.X86_64 or host.arch != target.arch.value:
        return None
    program = next((found for name in _PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-version"], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise UnavailableError(
            f"{program} does not start: {exc}", hint="install the package qemu-user anew"
        ) from exc
    first = re.match(r"(\S+) version (\S+)", done.stdout)
    version = " ".join(first.groups()) if first else "qemu-x86_64"
    return Emulator((program, "-cpu", target.emulator), version)
