"""Emulators: another CPU's instructions on this machine, for results, never for speed.

qemu's user mode runs one program. For a CPU of this machine's own architecture that is this very
interpreter with its packages. For a foreign one it is the Python of a root file system of that
architecture, with the packages of a device, unpacked in a folder (`edgekit.package.emulator` makes
it); edgekit's own code comes from where it runs now. Neither needs root's rights or a container.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgekit.build.cache import Cache, Step
from edgekit.build.host import Host
from edgekit.build.target import Arch, TargetProfile
from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, EdgekitError, UnavailableError

ROOT_ENV = "EDGEKIT_EMULATOR_ROOT"
ROOT_FILE = "edgekit-root.json"  # written last: a root without it was not finished
_TIMEOUT_S = 20.0
# Older ones crash or hang while onnxruntime for ARM is imported.
_MAJOR_MIN = {Arch.X86_64: 0, Arch.AARCH64: 10}
_NAMED = ("numpy", "onnxruntime")  # what computes: their versions can change a result
_CODE = ("edgekit", "edgekit_runtime")
_TRY = """
import onnxruntime, edgekit_runtime.evaluate
from edgekit_runtime import machine_facts
print(machine_facts.arch(), *machine_facts.isa_flags())
"""
_TRY_S_MAX = 300.0  # five seconds on an idle machine
# They speak of this machine's libraries and Python.
_NOT_PASSED_ON = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME")


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """What a root file system says of itself in `ROOT_FILE`. Paths are relative to it."""

    schema: Literal[1] = 1
    arch: str  # as the kernel calls it
    base: str  # digest over the layers it was unpacked from
    python: str
    python_version: str
    site: str  # folder of the packages


@dataclass(frozen=True)
class Emulator:
    """A Python on another CPU.

    ``facts`` name emulator, CPU model and, where they are not this machine's, Python, packages and
    base: for keys and records, so without paths. ``mend`` is the hint for when it does not work.
    """

    command: tuple[str, ...]  # up to the interpreter and its options
    facts: str
    mend: str
    site: Path | None = None  # packages of a foreign root; None: those of this interpreter

    def prepared(self, scratch: Path) -> tuple[list[str], dict[str, str] | None]:
        """Command prefix and environment (None: this one) that run our modules.

        A foreign root holds no code of ours. Links lead to it, and to nothing beside it: where it
        lies there may be packages for this machine, and the root may hide that folder.

        Args:
            scratch: an existing folder, kept while the command runs.
        """
        if self.site is None:
            return list(self.command), None
        code = scratch / "code"
        code.mkdir()
        for name in _CODE:
            spec = importlib.util.find_spec(name)
            if spec is None or not spec.submodule_search_locations:
                raise UnavailableError(
                    f"{name} is not installed here", hint="pip install 'edgekit-ml[build,runtime]'"
                )
            (code / name).symlink_to(Path(spec.submodule_search_locations[0]).resolve())
        kept = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED_ON}
        return list(self.command), {**kept, "PYTHONPATH": f"{self.site}{os.pathsep}{code}"}


def needs_root(target: TargetProfile, host: Host) -> bool:
    """Whether ``target`` is of another architecture than this machine."""
    return host.arch != target.arch.value


def root_folder(target: TargetProfile, cache_root: Path) -> Path:
    """Where the root for ``target`` is, or would be: ``$EDGEKIT_EMULATOR_ROOT``, else the cache."""
    given = os.environ.get(ROOT_ENV)
    folder = Path(given) if given else cache_root / "emulators" / target.arch.value
    return folder.absolute()


def find(target: TargetProfile, host: Host, cache_root: Path) -> Emulator:
    """The emulator of ``target``'s CPU, whose profile has to name one.

    Raises:
        UnavailableError: something it needs is missing, too old or incomplete; the hint says what
            to do about it.
    """
    assert target.emulator is not None
    program, version = _qemu(target.arch)
    facts = f"{version} -cpu {target.emulator}"
    command = (program, "-cpu", target.emulator)
    if not needs_root(target, host):
        mend = "pip install 'edgekit-ml[build,runtime]'"
        return Emulator((*command, sys.executable), facts, mend)
    folder = root_folder(target, cache_root)
    mend = f"make it: edgekit targets emulator {target.name} --base-rootfs ROOT.tar"
    try:
        root = _read(folder, target.arch)
        versions = _versions(folder / root.site)
    except EdgekitError as exc:
        what = f"no usable root file system of {target.arch.value}: {exc.message}"
        raise UnavailableError(what, hint=mend) from exc
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    facts += f", Python {root.python_version}, {listed}, base {digest.short(root.base)}"
    # -S: nothing but the packages of the root and our own code, whatever else lies about.
    python = (str(folder / root.python), "-S")
    return Emulator((*command, "-L", str(folder), *python), facts, mend, folder / root.site)


def ready(target: TargetProfile, host: Host, cache: Cache) -> Emulator:
    """What `find` finds, once it was seen to work; remembered by its facts, failures never.

    Raises:
        UnavailableError: as of `find` and `check`.
    """
    found = find(target, host, cache.root)
    seen = {"facts": found.facts, "isa": target.isa, "host": host.facts()}

    def make(_: Path) -> dict[str, Any]:
        with cache.scratch() as scratch:
            check(found, target, scratch)
        return {}

    cache.run(Step("emulator", 1, {}, {}, seen), make)
    return found


def check(emulator: Emulator, target: TargetProfile, scratch: Path) -> None:
    """Import a device's engine on the emulated CPU, and see that it is the target's.

    Raises:
        UnavailableError: it does not work, or another CPU is emulated.
    """
    command, environment = emulator.prepared(scratch)
    try:
        done = subprocess.run(
            [*command, "-c", _TRY],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TRY_S_MAX,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise UnavailableError(f"{emulator.facts}: {exc}", hint=emulator.mend) from exc
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UnavailableError(f"{emulator.facts}: {last}", hint=emulator.mend)
    machine, *isa = done.stdout.split()
    if strange := unlike(target, machine, tuple(isa)):
        raise UnavailableError(f"{emulator.facts}: {strange}", hint="correct the target's profile")


def unlike(target: TargetProfile, machine: str, isa: tuple[str, ...]) -> str | None:
    """Why a process that saw ``machine`` and the flags ``isa`` did not run on ``target``'s CPU.

    None when it did. For x86 only the architecture counts: there qemu shows this machine's flags.
    """
    seen = Host(machine, frozenset(isa), "")
    flags = target.isa if target.arch is Arch.AARCH64 else ()
    if seen.runs(msgspec.structs.replace(target, isa=flags)):
        return None
    return f"the emulated CPU is {machine} with {' '.join(isa)}; needed: {' '.join(target.isa)}"


def _qemu(arch: Arch) -> tuple[str, str]:
    """The program that emulates ``arch``, and its name and version."""
    wanted = f"qemu-{arch.value}"
    least = _MAJOR_MIN[arch]
    newer = f" {least} or newer (Debian 13 has it), first on the PATH" if least else ""
    hint = f"install qemu-user{newer}"
    program = next((p for name in (wanted, f"{wanted}-static") if (p := shutil.which(name))), None)
    if program is None:
        raise UnavailableError(f"no {wanted} on this machine", hint=hint)
    try:
        done = subprocess.run(
            [program, "-version"], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise UnavailableError(f"{program} does not start: {exc}", hint=hint) from exc
    found = re.match(r"(\S+) version ((\d+)\.\S+)", done.stdout)
    if found is None:
        raise UnavailableError(f"{program} -version does not say its version", hint=hint)
    if int(found[3]) < least:
        raise UnavailableError(
            f"{program} is version {found[2]}, too old to run onnxruntime", hint=hint
        )
    return program, f"{found[1]} {found[2]}"


def _read(folder: Path, arch: Arch) -> Root:
    if not (folder / ROOT_FILE).is_file():
        raise BadInputError(f"{folder} holds none, or an unfinished one")
    root = codec.read(Root, folder / ROOT_FILE)
    if root.arch != arch.value:
        raise BadInputError(f"{folder} is {root.arch}")
    if not (folder / root.python).is_file():
        raise BadInputError(f"{folder} has no {root.python}")
    return root


def _versions(site: Path) -> dict[str, str]:
    """Versions of what computes, as they lie there now: the root may have been changed by hand."""
    found = {each.name: each.version for each in metadata.distributions(path=[str(site)])}
    missing = [name for name in _NAMED if name not in found]
    if missing:
        raise BadInputError(f"{site} has no {' and no '.join(missing)}")
    return {name: found[name] for name in _NAMED}
