"""Measure a model by running the device's own code on it: a subprocess per model and data set."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgekit.build import tools
from edgekit.build.cache import Cache, Step
from edgekit.build.candidates import Candidate, Engine
from edgekit.build.data import DataFile
from edgekit.build.devices import Device
from edgekit.build.emulate import Emulator
from edgekit.build.host import Host
from edgekit.build.ports import BundleContent, BundleHead, BundleWriter
from edgekit.build.processes import TIMEOUT_S, Done, Processes
from edgekit.build.study import Artifact
from edgekit.build.target import TargetProfile, Validation
from edgekit.contracts import codec, digest
from edgekit.contracts.bundle import Role
from edgekit.contracts.contract import Contract, QualityBudget
from edgekit.contracts.errors import BugError, ResourceError, UnavailableError
from edgekit.contracts.evaluation import Evaluation, Latency, NodeTime
from edgekit.registry import npz
from edgekit.registry.npz import Array

VERSION = 1
RACE_VERSION = 2
_TIMES_VERSION = 1
LATENCY_RUNS_MIN = 200  # medians of fewer wobble
LATENCY_RUNS_MAX = 5000
# Small models answer in microseconds: 200 runs are over before the processor has changed its
# clock. Size stands in for time, which is not known before: about 2 GB of weights read in all.
_LATENCY_BYTES = 2_000_000_000
_EMULATED_TIMES = 6  # as long as else: ARM on x86 computes 150 to 300 times slower than x86
_MEND = "pip install 'edgekit-ml[build,runtime]'"
_EVALUATE = "edgekit_runtime.evaluate"
_RACE = "edgekit_runtime.race"
_NODE_TIMES = "edgekit_runtime.node_times"
_OUTPUTS = "outputs.npz"
_LAYOUT, _DATA = "layout", "data.npz"  # beside what runs on a device


class CandidateError(Exception):
    """This model cannot be measured; the message is the exact error. Drops a candidate."""


class CandidateMemoryError(CandidateError):
    """It needs more memory than the build may take."""


def latency_runs(model_bytes: int) -> int:
    """How many inferences to time for a model of this size."""
    return max(LATENCY_RUNS_MIN, min(LATENCY_RUNS_MAX, _LATENCY_BYTES // max(1, model_bytes)))


@dataclass(frozen=True)
class TimedRun:
    """A set of models that are timed together, equally often. ``name`` identifies the set."""

    name: str
    runs: int


@dataclass(frozen=True)
class Measured:
    """Figures and outputs of one model over one data set."""

    evaluation: Evaluation
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Subject:
    """What is measured: a model file with its contract and, once known, its golden set."""

    contents: tuple[BundleContent, ...]  # the model's files
    model_digest: str
    engine: str
    engine_versions: str
    engine_options: Mapping[str, str] = field(default_factory=dict)
    contract: Contract | None = None  # a `neutral` one, where it is not that of the variants
    device: Device | None = None  # where it runs; None: here
    golden: bytes | None = None
    tolerance: bytes | None = None


def neutral(contract: Contract) -> Contract:
    """``contract`` without its budgets: they decide about figures and never change one."""
    quality = QualityBudget(metric=contract.quality.metric, drop_max=1.0)
    return msgspec.structs.replace(contract, budgets={}, quality=quality)


@dataclass(frozen=True)
class Measurer:
    """Runs ``python -m edgekit_runtime.evaluate`` and remembers what it said."""

    cache: Cache
    writer: BundleWriter
    host: Host
    contract: Contract  # a `neutral` one, so that changing a budget measures nothing anew
    processes: Processes = field(default_factory=Processes)
    devices: Mapping[str, Device] = field(default_factory=dict)  # by target

    def level(self, target: TargetProfile) -> Validation:
        """Where artifacts for ``target`` run, when nothing is emulated."""
        return Validation.DEVICE if target.name in self.devices else self.host.validation(target)

    def is_real(self, target: TargetProfile) -> bool:
        """Whether what is measured for ``target`` is what devices of it take: time and memory."""
        return self.level(target) in {Validation.NATIVE, Validation.DEVICE}

    def subject(
        self, target: TargetProfile, artifact: Artifact, candidate: Candidate | None = None
    ) -> Subject:
        """What is measured of ``artifact``, run as ``candidate`` says, or as the original."""
        engine = candidate.engine if candidate else Engine.ONNXRUNTIME
        return Subject(
            tuple(artifact.contents()),
            artifact.digest,
            engine.value,
            target.versions_of(engine.value),
            candidate.engine_options if candidate else {},
            device=self.devices.get(target.name),
        )

    def measure(
        self,
        subject: Subject,
        data: DataFile,
        *,
        timed: TimedRun | None = None,
        emulator: Emulator | None = None,
        at_once: int = 1,
    ) -> Measured:
        """Run ``subject`` over ``data``.

        Args:
            subject: the model.
            data: inputs.
            timed: the run in which it is timed; None times nothing.
            emulator: runs it as another CPU; None runs it as it is.
            at_once: how many are measured side by side, and share the memory.

        Raises:
            CandidateError: the model does not load or does not run, or not in the memory it has.
            ResourceError: disk or memory is exhausted.
        """
        entry = self.cache.run(
            self._step(subject, data, timed, emulator),
            lambda folder: self._run(
                subject,
                data,
                folder,
                timed.runs if timed else 0,
                emulator=emulator,
                at_once=at_once,
            ),
        )
        if entry.facts["error"] is not None:
            raise CandidateError(entry.facts["error"])
        evaluation = codec.decode(
            Evaluation, codec.encode(entry.facts["evaluation"]), what="evaluation"
        )
        return Measured(evaluation, npz.read(entry.file(_OUTPUTS)))

    def knows(self, subject: Subject, data: DataFile, *, timed: TimedRun | None = None) -> bool:
        """Whether `measure` would only look up."""
        step = self._step(subject, data, timed, None)
        return self.cache.find(step, trusted=True) is not None  # `measure` reads it

    def race(self, subjects: Sequence[Subject], data: DataFile) -> list[Latency]:
        """Latencies of ``subjects`` timed in turns, in their order.

        Raises:
            CandidateError: they do not run together.
            ResourceError: disk or memory is exhausted.
        """
        found = self._in_turns("race", RACE_VERSION, _RACE, subjects, data)
        return codec.decode(list[Latency], found, what="race")

    def node_times(self, subjects: Sequence[Subject], data: DataFile) -> list[tuple[NodeTime, ...]]:
        """How long each operator of ``subjects`` takes here, by the profilers of their engines.

        Raises:
            CandidateError: one does not run, or its engine does not say.
            ResourceError: disk or memory is exhausted.
        """
        found = self._in_turns("node-times", _TIMES_VERSION, _NODE_TIMES, subjects, data)
        return codec.decode(list[tuple[NodeTime, ...]], found, what="node times")

    def _in_turns(
        self, name: str, version: int, module: str, subjects: Sequence[Subject], data: DataFile
    ) -> bytes:
        """What ``module`` says about ``subjects`` that run in turns, in one process."""
        steps = [self._step(each, data, TimedRun(name, 0), None) for each in subjects]
        inputs = {str(index): step.key() for index, step in enumerate(steps)}
        entry = self.cache.run(
            Step(name, version, {}, inputs), lambda _: self._run_in_turns(module, subjects, data)
        )
        if entry.facts["error"] is not None:
            raise CandidateError(entry.facts["error"])
        return codec.encode(entry.facts["found"])

    def _run_in_turns(
        self, module: str, subjects: Sequence[Subject], data: DataFile
    ) -> dict[str, Any]:
        with self.cache.scratch() as scratch:
            layout = scratch / "layout"
            written = []
            for index, subject in enumerate(subjects):
                head = _trial_head(subject, str(index))
                written.append(self.writer.write(layout, head, self._contents(subject)).digest)
            arguments = [module, _LAYOUT, *written, "--data", _DATA]
            device = subjects[0].device
            if device is not None:
                files = {_LAYOUT: layout, _DATA: data.path()}
                raw, error, _ = self._remote(device, arguments, files, scratch, wanted={"stdout"})
            else:
                places = {_LAYOUT: str(layout), _DATA: str(data.path())}
                here = [places.get(word, word) for word in arguments]
                raw, error = self._evaluate([*tools.python(), *here])
        found = None if raw is None else codec.decode(list[Any], raw, what=f"output of {module}")
        return {"error": error, "found": found}

    def _contents(self, subject: Subject) -> list[BundleContent]:
        contract = codec.encode(subject.contract or self.contract)
        return [*subject.contents, BundleContent("contract.json", Role.CONTRACT, contract)]

    def _step(
        self, subject: Subject, data: DataFile, timed: TimedRun | None, emulator: Emulator | None
    ) -> Step:
        inputs = {
            "model": subject.model_digest,
            "contract": digest.of_bytes(codec.encode(subject.contract or self.contract)),
            "data": data.digest,
        }
        for name in ("golden", "tolerance"):
            content: bytes | None = getattr(subject, name)
            if content is not None:
                inputs[name] = digest.of_bytes(content)
        return Step(
            "measure",
            VERSION,
            {
                **tools.versions(),
                **tools.engine_versions(subject.engine),
                "runtime": tools.measuring_code(),
            },
            inputs,
            {
                "timed": [timed.name, timed.runs] if timed else None,
                "engine": [subject.engine, subject.engine_versions, subject.engine_options],
                "host": subject.device.facts if subject.device else self.host.facts(),
                "emulator": emulator.facts if emulator else None,
            },
        )

    def _run(
        self,
        subject: Subject,
        data: DataFile,
        folder: Path,
        runs: int,
        *,
        emulator: Emulator | None,
        at_once: int,
    ) -> dict[str, Any]:
        contents = self._contents(subject)
        if subject.golden is not None and subject.tolerance is not None:
            contents.append(BundleContent("golden.npz", Role.GOLDEN, subject.golden))
            contents.append(BundleContent("tolerance.json", Role.TOLERANCE, subject.tolerance))
        head = _trial_head(subject, "0")
        with self.cache.scratch() as scratch:
            layout = scratch / "layout"
            bundle = self.writer.write(layout, head, contents)
            arguments = ["--json", "--latency-runs", str(runs)]
            if subject.device is not None and emulator is None:
                arguments += [f"{_LAYOUT}@{bundle.digest}", "--data", _DATA]
                arguments += ["--outputs", f"out/{_OUTPUTS}"]
                files = {_LAYOUT: layout, _DATA: data.path()}
                raw, error, got = self._remote(
                    subject.device,
                    [_EVALUATE, *arguments],
                    files,
                    scratch,
                    wanted={"stdout", _OUTPUTS},
                )
                if raw is not None:
                    (folder / _OUTPUTS).write_bytes(got[_OUTPUTS])
            else:
                python, environment = (
                    emulator.prepared(scratch) if emulator else ([sys.executable], None)
                )
                arguments += [f"{layout}@{bundle.digest}", "--data", str(data.path())]
                arguments += ["--outputs", str(folder / _OUTPUTS)]
                command = [*python, "-m", _EVALUATE, *arguments]
                raw, error = self._evaluate(command, at_once, emulator, environment)
        if raw is None:
            return {"error": error, "evaluation": None}
        evaluation = codec.decode(Evaluation, raw, what="output of edgekit_runtime.evaluate")
        return {"error": None, "evaluation": evaluation}

    def _evaluate(
        self,
        command: list[str],
        at_once: int = 1,
        emulator: Emulator | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[bytes | None, str | None]:
        """Output, or the exact error where it is the model's fault."""
        done = self.processes.run(
            command,
            environment,
            at_once=at_once,
            # Emulators reserve what they never touch.
            bounded=emulator is None,
            timeout_s=TIMEOUT_S * (_EMULATED_TIMES if emulator else 1),
        )
        if done.starved and at_once > 1:  # with all the memory to itself it may do
            return self._evaluate(command, 1, emulator, environment)
        if done.starved:
            raise CandidateMemoryError(f"measuring: {done.wanted}")
        return _outcome(done, done.stdout, emulator.mend if emulator else _MEND)

    def _remote(
        self,
        device: Device,
        arguments: list[str],
        files: Mapping[str, Path],
        work: Path,
        *,
        wanted: set[str],
    ) -> tuple[bytes | None, str | None, dict[str, bytes]]:
        """As `_evaluate` on a device, and the files that came back."""
        done, got = device.run(self.processes, ["-m", *arguments], files, work)
        if done.starved:
            raise CandidateMemoryError("measuring: it needs more memory than the device has")
        if done.returncode == 0 and wanted - set(got):
            raise device.incomplete(done)
        return *_outcome(done, got.get("stdout", b""), device.mend), got


def _outcome(done: Done, stdout: bytes, mend: str) -> tuple[bytes | None, str | None]:
    """What it said, or the exact error where it is the model's fault; ``mend`` is Python's."""
    if done.returncode == 0:
        return stdout, None
    found = re.search(r"^error: (.*)$", done.stderr, re.MULTILINE)
    lines = done.stderr.strip().splitlines()
    message = found[1] if found else (lines[-1] if lines else f"exit status {done.returncode}")
    if done.returncode < 0:
        return None, f"the engine crashed with signal {-done.returncode}"
    if done.returncode == ResourceError.exit_code:
        raise ResourceError(message, hint="free space or memory and run the same command again")
    if "No module named" in message or not found:
        raise UnavailableError(f"cannot measure: {message}", hint=mend)
    if done.returncode in (2, BugError.exit_code):
        raise BugError(f"edgekit_runtime.evaluate: {message}")
    return None, message


def _trial_head(subject: Subject, version: str) -> BundleHead:
    return BundleHead(
        "trial",
        version,
        "trial",
        "any",
        subject.engine,
        subject.engine_versions,
        engine_options=subject.engine_options,
    )
