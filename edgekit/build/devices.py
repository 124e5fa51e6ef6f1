"""Devices that a command reaches: what is measured for their target runs there, by agent's code.

The command is a program whose last argument is a line for a shell on the device: ``ssh pi@attic``,
``docker exec -i NAME sh -c``. Bundle and data go there as a tar on its stdin, figures and outputs
come back as one on its stdout, and nothing is left behind.
"""

from __future__ import annotations

import io
import json
import shlex
import signal
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edgekit.build.host import Host
from edgekit.build.processes import Done, Processes
from edgekit.build.target import TargetProfile
from edgekit.contracts import digest
from edgekit.contracts.errors import UnavailableError, UsageError

# The device's shell: its status is that of the program, whatever became of it.
_SCRIPT = (
    'd=$(mktemp -d) && trap \'rm -rf "$d"\' EXIT && cd "$d" && tar -xf - && mkdir out'
    " && {command} > out/stdout; s=$?; tar -cf - out; exit $s"
)
_OUT = "out/"
_SIGNALLED = 128  # a shell adds it to the number of the signal that ended a program
_PROBE = """
import json
from importlib import metadata
from edgekit import __version__
from edgekit_runtime import evaluate, machine_facts
names = ("numpy", "onnxruntime", "openvino", "tensorrt")
found = {"edgekit": __version__}
for name in names:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
facts = {"arch": machine_facts.arch(), "board": machine_facts.board(), "versions": found}
print(json.dumps(facts | {"isa": machine_facts.isa_flags()}))
"""


class _Facts(msgspec.Struct, frozen=True):
    """What a device says of itself."""

    arch: str
    isa: tuple[str, ...]
    board: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Device:
    """One device, reached and found fit for its target."""

    command: tuple[str, ...]
    python: str  # and its options, as a shell reads it
    facts: Mapping[str, str] = field(default_factory=dict)  # for keys and records

    @property
    def mend(self) -> str:
        """The hint for when it does not answer."""
        return (
            f"see that `{shlex.join(self.command)} true` works, and that `{self.python}` there has "
            "edgekit-ml[runtime] (--device-python)"
        )

    def run(
        self, processes: Processes, arguments: Sequence[str], files: Mapping[str, Path], work: Path
    ) -> tuple[Done, dict[str, bytes]]:
        """Run Python with ``arguments`` beside ``files``.

        Args:
            processes: of the build.
            arguments: of the interpreter; each is one word there, too.
            files: files and folders by the name they have beside it.
            work: folder for what is sent.

        Returns:
            How it ended, and the files it wrote under ``out/``, among them its ``stdout``.

        Raises:
            UnavailableError: it did not end in time.
            ResourceError: the command cannot be started.
        """
        sent = work / "sent.tar"
        with tarfile.open(sent, "w") as archive:
            for name, path in files.items():
                archive.add(path, arcname=name)
        line = _SCRIPT.format(command=f"{self.python} {shlex.join(arguments)}")
        done = processes.run([*self.command, line], stdin=sent, bounded=False)
        sent.unlink()
        if _SIGNALLED < done.returncode < _SIGNALLED + signal.NSIG:  # as shells tell it
            done = replace(done, returncode=_SIGNALLED - done.returncode)
        return done, _received(done.stdout)

    def incomplete(self, done: Done) -> UnavailableError:
        """The error for an answer that lacks a file although all went well there."""
        return UnavailableError(
            f"something else came back than the answer: {done.stdout[:60]!r}",
            hint="its shell must not greet, nor write anything else by itself, and its disk must "
            "have room for the outputs",
        )


def _received(raw: bytes) -> dict[str, bytes]:
    """Files under ``out/``; empty when what came is no archive: a command that failed says why."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None and member.name.startswith(_OUT):
                    found[member.name.removeprefix(_OUT)] = stream.read()
    except tarfile.TarError:
        return {}
    return found


def parse(text: str, python: str) -> tuple[str, Device]:
    """A target's name and how its device is reached, from ``TARGET=COMMAND``.

    Raises:
        UsageError: it is not of that form.
    """
    name, equals, rest = text.partition("=")
    try:
        command = tuple(shlex.split(rest))
    except ValueError as exc:
        raise UsageError(f"--device {text}: {exc}", hint="--device 'rpi5=ssh pi@attic'") from exc
    if not (name and equals and command):
        raise UsageError(
            f"--device {text}: is not TARGET=COMMAND", hint="--device 'rpi5=ssh pi@attic'"
        )
    return name, Device(command, python)


def reach(device: Device, target: TargetProfile, processes: Processes, work: Path) -> Device:
    """``device`` with its facts, once it was seen to be one of ``target``.

    Raises:
        UnavailableError: it does not answer, lacks the runtime, or is another kind of device.
    """
    what = f"device of {target.name}"
    done, files = device.run(processes, ["-c", _PROBE], {}, work)
    if done.returncode == 0 and "stdout" not in files:
        raise device.incomplete(done)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UnavailableError(f"{what}: {last}", hint=device.mend)
    try:
        facts = msgspec.convert(json.loads(files["stdout"]), _Facts)
    except (ValueError, msgspec.ValidationError) as exc:
        raise UnavailableError(f"{what}: what it says of itself: {exc}", hint=device.mend) from exc
    # A Jetson's GPU does not show among the flags of its processor: the golden set will tell.
    seen = Host(facts.arch, frozenset(facts.isa), "")
    if not seen.runs(msgspec.structs.replace(target, sm=None)):
        raise UnavailableError(
            f"{what}: it is {facts.arch} and lacks some of: {' '.join(target.isa) or 'nothing'}",
            hint="name a device of that target",
        )
    flags = digest.of_bytes(" ".join(facts.isa).encode())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
    found = {"arch": facts.arch, "board": facts.board, "flags": flags, "versions": versions}
    return Device(device.command, device.python, found)
