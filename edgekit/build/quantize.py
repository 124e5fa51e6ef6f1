"""Calibrate once, quantize in batches: runs the quantizer processes and remembers their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgekit.build import tools
from edgekit.build.cache import Cache, Entry, Step
from edgekit.build.candidates import Candidate, Engine, Scheme
from edgekit.build.host import Host
from edgekit.build.measure import killed, run_child
from edgekit.build.ranges import Ranges
from edgekit.build.study import Artifact, Study
from edgekit.contracts import codec, digest
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import ResourceError

_CALIBRATE_VERSION = 2  # of edgekit.build.quantizers.calibrate
_QUANTIZE_VERSION = 5  # of edgekit.build.quantizers.worker
_WORKER = "edgekit.build.quantizers.worker"
_CALIBRATE = "edgekit.build.quantizers.calibrate"
_MODEL, _RANGES = "model.onnx", "ranges.json"
_SUFFIX = {Engine.ONNXRUNTIME: "onnx", Engine.OPENVINO: "xml"}
_GRAPH, _WEIGHTS = "model.xml", "model.bin"  # of IR


@dataclass
class Quantization:
    """Makes the files of candidates. Not thread-safe: one batch at a time."""

    study: Study
    cache: Cache
    host: Host
    contract: Contract  # without budgets, so that changing one quantizes nothing anew
    scratch: Path
    _made: dict[Candidate, Artifact | str] = field(default_factory=dict)
    _calibrated: Entry | None = None

    def make(self, candidates: Sequence[Candidate]) -> dict[Candidate, Artifact | str]:
        """The file of each candidate, or the exact error of its quantizer.

        Raises:
            ResourceError: disk or memory is exhausted.
            UnavailableError: a quantizer hangs.
        """
        todo: dict[Candidate, Step] = {}
        for candidate in dict.fromkeys(each.file for each in candidates):
            if candidate in self._made:
                continue
            if candidate.unquantized:
                self._made[candidate] = self.study.normalised
                continue
            if error := self._calibration_error(candidate):
                self._made[candidate] = f"calibration: {error}"
                continue
            step = self._step(candidate)
            known = self.cache.find(step)
            if known is None:
                todo[candidate] = step
            else:
                self._made[candidate] = _result(known)
        if todo:
            self._run_batches(todo)
        return {candidate: self._made[candidate.file] for candidate in candidates}

    def find(self, candidate: Candidate) -> Artifact | str | None:
        """What `make` would only look up; None when there is work to do."""
        candidate = candidate.file
        if candidate in self._made or candidate.unquantized:
            return self.make([candidate])[candidate]
        if candidate.needs_ranges and self._calibrated is None:
            return None
        known = (
            None if self._calibration_error(candidate) else self.cache.find(self._step(candidate))
        )
        return None if known is None else _result(known)

    def ranges(self) -> Ranges | None:
        """What calibration found; None when it failed."""
        entry = self._calibrate()
        return None if entry.facts["error"] else codec.read(Ranges, entry.file(_RANGES))

    def _calibration_error(self, candidate: Candidate) -> str | None:
        error: str | None = self._calibrate().facts["error"] if candidate.needs_ranges else None
        return error

    def _calibrate(self) -> Entry:
        if self._calibrated is None:
            inputs = {
                "model": self.study.normalised.digest,
                "calibration": self.study.calibration_digest,
                "contract": digest.of_bytes(codec.encode(self.contract)),
            }
            # Ranges come from running the float model here: the CPU class belongs to the key.
            facts = {"host": self.host.facts()}
            step = Step("calibrate", _CALIBRATE_VERSION, tools.versions(), inputs, facts)
            self._calibrated = self.cache.run(step, self._run_calibration)
        return self._calibrated

    def _run_calibration(self, folder: Path) -> Mapping[str, Any]:
        request = {
            "model": str(self.study.normalised.path),
            "data": str(self.study.calibration),
            "contract": self.contract,
            "target": str(folder / _RANGES),
        }
        lines, stopped = self._child(_CALIBRATE, request)
        if stopped is not None:
            return {"error": stopped}
        answer: Mapping[str, Any] = lines[-1]
        return answer

    def _step(self, candidate: Candidate) -> Step:
        inputs = {"model": self.study.normalised.digest}
        if candidate.needs_ranges:
            inputs["ranges"] = self._calibrate().digests[_RANGES]
        if candidate.scheme is Scheme.NNCF:
            inputs["calibration"] = self.study.calibration_digest
            inputs["contract"] = digest.of_bytes(codec.encode(self.contract))
        # The name is ours; what the quantizer does depends on the rest only.
        anonymous = msgspec.structs.replace(candidate, name="")
        parameters: dict[str, Any] = {"candidate": anonymous}
        if candidate.scheme is Scheme.NNCF:
            parameters["host"] = self.host.facts()  # its ranges come from running the model here
        versions = {**tools.versions(), **tools.used_by(candidate)}
        return Step("quantize", _QUANTIZE_VERSION, versions, inputs, parameters)

    def _run_batches(self, todo: Mapping[Candidate, Step]) -> None:
        """One process for all; one that a job kills is started again behind that job."""
        left = list(todo)
        with self.cache.scratch() as folder:
            while left:
                targets = [
                    folder / f"{index}.{_SUFFIX[candidate.engine]}"
                    for index, candidate in enumerate(left)
                ]
                answers = self._run_batch(left, targets)
                for candidate, target, answer in zip(left, targets, answers, strict=False):
                    entry = self.cache.run(todo[candidate], _mover(target, answer))
                    self._made[candidate] = _result(entry)
                left = left[len(answers) :]

    def _run_batch(self, left: Sequence[Candidate], targets: Sequence[Path]) -> list[Any]:
        needed = any(candidate.needs_ranges for candidate in left)
        request = {
            "model": str(self.study.normalised.path),
            "ranges": str(self._calibrate().file(_RANGES)) if needed else None,
            "data": str(self.study.calibration),
            "contract": self.contract,
            "jobs": [
                {"candidate": candidate, "target": str(target)}
                for candidate, target in zip(left, targets, strict=True)
            ],
        }
        answers, stopped = self._child(_WORKER, request)
        if stopped is not None:
            answers.append({"error": stopped, "reduced": [], "coverage": None})
        return answers

    def _child(self, module: str, request: Mapping[str, Any]) -> tuple[list[Any], str | None]:
        """The answers, and how the process died if it was the candidate's fault."""
        path = self.scratch / f"{module.rpartition('.')[2]}.json"
        path.write_bytes(codec.encode(request))
        done = run_child([*tools.python(), module, str(path)])
        what = module.rpartition(".")[2]
        if error := killed(done, f"the process of {what}"):
            raise error
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
        if done.returncode < 0:
            return answers, f"the quantizer crashed with signal {-done.returncode}"
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise ResourceError(
                f"{what} stopped: {lines[-1]}",
                hint="free space or memory and run the same command again",
            )
        return answers, None


def _mover(target: Path, answer: Mapping[str, Any]) -> Any:
    def make(folder: Path) -> Mapping[str, Any]:
        if answer["error"] is None and target.suffix == ".xml":
            target.replace(folder / _GRAPH)
            target.with_suffix(".bin").replace(folder / _WEIGHTS)
        elif answer["error"] is None:
            target.replace(folder / _MODEL)
        return answer

    return make


def _result(entry: Entry) -> Artifact | str:
    error: str | None = entry.facts["error"]
    if error is not None:
        return error
    reduced, share = tuple(entry.facts["reduced"]), entry.facts["coverage"]
    if _GRAPH in entry.digests:
        graph, weights = entry.file(_GRAPH), entry.file(_WEIGHTS)
        both = digest.of_bytes(f"{entry.digests[_GRAPH]} {entry.digests[_WEIGHTS]}".encode())
        size = graph.stat().st_size + weights.stat().st_size
        return Artifact(graph, both, size, reduced, weights, share)
    path = entry.file(_MODEL)
    return Artifact(path, entry.digests[_MODEL], path.stat().st_size, reduced, coverage=share)
