"""Calibrate once, quantize in batches: runs the quantizer processes and remembers their results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from edgekit.build import tools
from edgekit.build.cache import Cache, Entry, Step
from edgekit.build.candidates import Candidate, Engine, Scheme
from edgekit.build.host import Host
from edgekit.build.processes import Done, Processes, says_memory
from edgekit.build.ranges import Ranges
from edgekit.build.study import Artifact, Study
from edgekit.contracts import codec, digest
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import ResourceError

_CALIBRATE_VERSION = 3  # of edgekit.build.quantizers.calibrate
_QUANTIZE_VERSION = 5  # of edgekit.build.quantizers.worker
_WORKER = "edgekit.build.quantizers.worker"
_CALIBRATE = "edgekit.build.quantizers.calibrate"
_MODEL, _RANGES = "model.onnx", "ranges.json"
_SUFFIX = {Engine.ONNXRUNTIME: "onnx", Engine.OPENVINO: "xml"}
_GRAPH, _WEIGHTS = "model.xml", "model.bin"  # of IR
_JOBS_MIN = 4  # of a process: each imports for a second; one is enough where NNCF calibrates


class _StarvedError(Exception):
    """Calibration needs more memory than the build may take; said of candidates, never cached."""


@dataclass
class Quantization:
    """Makes the files of candidates. Not thread-safe: one batch at a time."""

    study: Study
    cache: Cache
    host: Host
    contract: Contract  # without budgets, so that changing one quantizes nothing anew
    scratch: Path
    processes: Processes = field(default_factory=Processes)
    _made: dict[Candidate, Artifact | str] = field(default_factory=dict)
    _calibrated: Entry | None = None
    _starved: str | None = None  # calibration did, and would again

    def make(
        self, candidates: Sequence[Candidate], *, until: float | None = None
    ) -> dict[Candidate, Artifact | str]:
        """The file of each candidate, or the exact error of its quantizer.

        Args:
            candidates: in the order in which they are made.
            until: monotonic seconds. What is not begun by then is missing in the answer; what is
                in the cache takes no time. None: all are made.

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
            known = self.cache.find(step, trusted=True)  # read when it is measured or shipped
            if known is None:
                todo[candidate] = step
            else:
                self._made[candidate] = _result(known)
        if todo and (until is None or time.monotonic() < until):
            self._run_batches(todo, until)
        return {each: self._made[each.file] for each in candidates if each.file in self._made}

    def find(self, candidate: Candidate) -> Artifact | str | None:
        """What `make` would only look up; None when there is work to do."""
        candidate = candidate.file
        if candidate in self._made or candidate.unquantized:
            return self.make([candidate])[candidate]
        if candidate.needs_ranges and self._calibrated is None and self._starved is None:
            return None
        if error := self._calibration_error(candidate):
            return f"calibration: {error}"
        known = self.cache.find(self._step(candidate), trusted=True)
        return None if known is None else _result(known)

    def ranges(self) -> Ranges | None:
        """What calibration saw; None where no candidate asked, or it failed."""
        if self._calibrated is None or self._calibrated.facts["error"] is not None:
            return None
        return codec.read(Ranges, self._calibrated.file(_RANGES))

    def _calibration_error(self, candidate: Candidate) -> str | None:
        if not candidate.needs_ranges:
            return None
        if self._starved is None:
            try:
                error: str | None = self._calibrate().facts["error"]
            except _StarvedError as exc:
                self._starved = str(exc)
            else:
                return error
        return self._starved

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
        done = self._child(_CALIBRATE, request, self.scratch)
        if done.starved:
            raise _StarvedError(done.wanted)
        if done.returncode:
            return {"error": _crash(done)}
        answer = _answers(done)[-1]
        if says_memory(answer["error"] or ""):
            raise _StarvedError(f"{done.wanted}: {answer['error']}")
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

    def _run_batches(self, todo: Mapping[Candidate, Step], until: float | None) -> None:
        """Side by side as memory and cores allow; what starves there is made once more alone."""
        if any(candidate.needs_ranges for candidate in todo):
            self._calibrate()
        work = sum(_JOBS_MIN if each.scheme is Scheme.NNCF else 1 for each in todo)
        at_once = self.processes.at_once(-(-work // _JOBS_MIN))
        shares = [list(todo)[index::at_once] for index in range(at_once)]
        with ThreadPoolExecutor(at_once) as pool:
            found = pool.map(lambda share: self._run_share(share, todo, until, at_once), shares)
            starved = list(chain.from_iterable(found))
        if starved and at_once > 1:
            for candidate in starved:
                del self._made[candidate]
            self._run_share(starved, todo, None, 1)

    def _run_share(
        self,
        left: list[Candidate],
        todo: Mapping[Candidate, Step],
        until: float | None,
        at_once: int,
    ) -> list[Candidate]:
        """One process for all; one that a job ends is started again behind it. Who starved."""
        starved: list[Candidate] = []
        with self.cache.scratch() as folder:
            while left:
                seconds = None if until is None else until - time.monotonic()
                targets = [
                    folder / f"{index}.{_SUFFIX[candidate.engine]}"
                    for index, candidate in enumerate(left)
                ]
                answers = self._run_batch(left, targets, seconds, at_once, folder)
                for candidate, target, answer in zip(left, targets, answers, strict=False):
                    if isinstance(answer, str):
                        self._made[candidate] = answer
                        starved.append(candidate)
                    else:
                        entry = self.cache.run(todo[candidate], _mover(target, answer))
                        self._made[candidate] = _result(entry)
                left = left[len(answers) :]
                if until is not None and time.monotonic() >= until:
                    break
        return starved

    def _run_batch(
        self,
        left: Sequence[Candidate],
        targets: Sequence[Path],
        seconds: float | None,
        at_once: int,
        folder: Path,
    ) -> list[Mapping[str, Any] | str]:
        """What came of each of ``left`` up to where the process ended; a string: it starved."""
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
            "seconds": seconds,
        }
        done = self._child(_WORKER, request, folder, at_once)
        found: list[Mapping[str, Any] | str] = [
            f"{done.wanted}: {answer['error']}" if says_memory(answer["error"] or "") else answer
            for answer in _answers(done)
            if "stopped" not in answer
        ]
        if done.starved:
            found.append(done.wanted)
        elif done.returncode:
            found.append({"error": _crash(done), "reduced": [], "coverage": None})
        return found

    def _child(
        self, module: str, request: Mapping[str, Any], folder: Path, at_once: int = 1
    ) -> Done:
        """Raises `ResourceError` when it ended for another reason than its jobs."""
        path = folder / "request.json"
        path.write_bytes(codec.encode(request))
        done = self.processes.run([*tools.python(), module, str(path)], at_once=at_once)
        if done.returncode > 0 and not done.starved:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise ResourceError(
                f"{module.rpartition('.')[2]} stopped: {lines[-1]}",
                hint="free space or memory and run the same command again",
            )
        return done


def _answers(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


def _crash(done: Done) -> str:
    return f"the quantizer crashed with signal {-done.returncode}"


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
        digests = entry.digests[_GRAPH], entry.digests[_WEIGHTS]
        both = digest.of_bytes(" ".join(digests).encode())
        size = graph.stat().st_size + weights.stat().st_size
        return Artifact(graph, both, size, reduced, weights, digests, share)
    path = entry.file(_MODEL)
    return Artifact(path, entry.digests[_MODEL], path.stat().st_size, reduced, coverage=share)
