"""From a normalised model to the chosen variant of one target."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit.build import derive, gates, select, tools
from edgekit.build.cache import Cache, Step
from edgekit.build.candidates import FP32, Candidate, candidates_for
from edgekit.build.host import Host
from edgekit.build.measure import (
    CandidateError,
    Measured,
    Measurer,
    Subject,
    TimedRun,
    killed,
    latency_runs,
    run_child,
)
from edgekit.build.quantizers import ort_static
from edgekit.build.record import CandidateRecord
from edgekit.build.target import TargetProfile, Validation
from edgekit.contracts import codec, digest
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import GateFailedError, ResourceError
from edgekit.contracts.verdict import Outcome, Verdict, combine
from edgekit.registry.infer import scored_output
from edgekit.registry.npz import Array
from edgekit.stats.bounds import Drop
from edgekit.stats.metrics import METRICS

_QUANTIZERS_AT_ONCE = 2  # each may need several times the model in memory


@dataclass(frozen=True)
class Artifact:
    """A model file in the cache or the registry."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Study:
    """Everything about one model version that does not depend on the target."""

    contract: Contract
    original: Artifact
    normalised: Artifact
    calibration: Path
    calibration_digest: str
    tuning: Path  # inputs of the tuning split, followed by those of the golden split
    evaluation: Path  # inputs of the evaluation split
    tuning_n: int
    golden_inputs: Mapping[str, Array]
    tuning_labels: Array | None
    evaluation_labels: Array | None


@dataclass(frozen=True)
class Trial:
    """A candidate that ran: its file, its outputs on tuning and golden data, its figures."""

    artifact: Artifact
    measured: Measured
    figures: select.Figures
    quality: float


@dataclass(frozen=True)
class Chosen:
    """The result for one target, whether its gates passed or not."""

    trial: Trial
    golden: bytes
    tolerance: bytes
    final: Measured
    drop: Drop
    quality: float
    original_quality: float
    original_latency_ms: float | None
    verdicts: tuple[Verdict, ...]
    candidates: tuple[CandidateRecord, ...]

    @property
    def outcome(self) -> Outcome:
        """Joint outcome of the gates."""
        return combine(self.verdicts)


@dataclass
class VariantBuilder:
    """Builds variants of one study. ``tick`` announces each unit of work."""

    study: Study
    cache: Cache
    measurer: Measurer
    host: Host
    scratch: Path
    tick: Callable[[str], None]
    _quantized: dict[Candidate, Artifact | str] = field(default_factory=dict)

    def prepare(self, targets: Sequence[TargetProfile]) -> None:
        """Quantize for all targets, a few at a time; nothing is timed while this goes on."""
        wanted = dict.fromkeys(each for target in targets for each in candidates_for(target))
        todo = [candidate for candidate in wanted if candidate != FP32]

        def make(candidate: Candidate) -> Artifact | str:
            self.tick(f"quantizing {candidate.name}")
            return self._quantize(candidate)

        with ThreadPoolExecutor(_QUANTIZERS_AT_ONCE) as pool:
            self._quantized.update(zip(todo, pool.map(make, todo), strict=True))

    def build(self, target: TargetProfile) -> Chosen:
        """Try every candidate of ``target`` and settle on one; `prepare` came before.

        Raises:
            BadInputError: the original itself cannot be run.
            GateFailedError: no candidate is left.
            ResourceError: disk or memory is exhausted.
        """
        level = self.host.validation(target)
        artifacts, records = self._make(target)
        timed = self._timed_run(artifacts) if level is Validation.NATIVE else None
        original = self._original(target, self.study.tuning, timed)
        trials = self._try(target, artifacts, original, timed, records)
        drop_max = self.study.contract.quality.drop_max
        order = select.preference([trial.figures for trial in trials.values()], drop_max)
        if not order:
            raise GateFailedError(
                f"{target.name}: no candidate could be built",
                hint="; ".join(f"{entry.name}: {entry.reason}" for entry in records.values()),
            )
        attempts: list[Chosen] = []
        for figures in order:
            trial = trials[figures.candidate.name]
            attempts.append(self._finish(target, level, trial, original))
            if attempts[-1].outcome is Outcome.PASS:
                break
            why = next(v for v in attempts[-1].verdicts if v.outcome is not Outcome.PASS)
            reason = f"gate {why.metric}: {derive.timeless(why).reason}"
            records[figures.candidate.name] = _record(trial, "gate_failed", reason)
        result = attempts[-1]
        if result.outcome is Outcome.PASS:
            self._explain(result, trials, records, len(attempts))
        order_of = [candidate.name for candidate in candidates_for(target)]
        listed = tuple(sorted(records.values(), key=lambda entry: order_of.index(entry.name)))
        return Chosen(**{**result.__dict__, "candidates": listed})

    def _make(
        self, target: TargetProfile
    ) -> tuple[dict[str, Artifact], dict[str, CandidateRecord]]:
        artifacts: dict[str, Artifact] = {}
        records: dict[str, CandidateRecord] = {}
        for candidate in candidates_for(target):
            made = self._artifact(candidate)
            if isinstance(made, str):
                records[candidate.name] = _dropped(candidate, made)
                continue
            twin = next((n for n, a in artifacts.items() if a.digest == made.digest), None)
            if twin is not None:
                records[candidate.name] = _dropped(candidate, f"the same file as {twin}")
                continue
            artifacts[candidate.name] = made
        return artifacts, records

    def _artifact(self, candidate: Candidate) -> Artifact | str:
        """The candidate's file, or the exact error of its quantizer."""
        return self.study.normalised if candidate == FP32 else self._quantized[candidate]

    def _quantize(self, candidate: Candidate) -> Artifact | str:
        step = Step(
            "quantize-ort-static",
            ort_static.VERSION,
            tools.versions(),
            {
                "model": self.study.normalised.digest,
                "calibration": self.study.calibration_digest,
                "contract": digest.of_bytes(codec.encode(self.measurer.contract)),
            },
            # The name is ours; what the quantizer does depends on the rest only. Ranges come from
            # running the float model here, so the CPU class belongs to the key.
            {"candidate": candidate, "host": self.host.facts()},
        )
        entry = self.cache.run(step, lambda folder: self._run_quantizer(candidate, folder))
        error: str | None = entry.facts["error"]
        if error is not None:
            return error
        path = entry.file("model.onnx")
        return Artifact(path, entry.digests["model.onnx"], path.stat().st_size)

    def _run_quantizer(self, candidate: Candidate, folder: Path) -> dict[str, str | None]:
        request = ort_static.Request(
            model=str(self.study.normalised.path),
            target=str(folder / "model.onnx"),
            data=str(self.study.calibration),
            contract=self.measurer.contract,
            candidate=candidate,
        )
        path = self.scratch / f"{candidate.name}.json"
        path.write_bytes(codec.encode(request))
        done = run_child([*tools.python(), ort_static.__name__, str(path)])
        if error := killed(done, f"quantizer of {candidate.name}"):
            raise error
        if done.returncode < 0:
            return {"error": f"the quantizer crashed with signal {-done.returncode}"}
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise ResourceError(
                f"quantizer of {candidate.name} stopped: {lines[-1]}",
                hint="free space or memory and run the same command again",
            )
        answer: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
        if answer["error"] is not None:
            (folder / "model.onnx").unlink(missing_ok=True)
        return answer

    def _timed_run(self, artifacts: Mapping[str, Artifact]) -> TimedRun:
        """The run in which the original and all candidates of a target are timed."""
        together = sorted({self.study.original.digest, *(a.digest for a in artifacts.values())})
        name = digest.of_bytes("\n".join(together).encode())
        return TimedRun(name, latency_runs(self.study.original.size))

    def _original(self, target: TargetProfile, data: Path, timed: TimedRun | None) -> Measured:
        self.tick(f"{target.name}: measuring the original")
        subject = self._subject(target, self.study.original)
        try:
            return self.measurer.measure(subject, data, timed=timed)
        except CandidateError as exc:
            raise tools.unusable_original(str(exc)) from exc

    def _subject(self, target: TargetProfile, artifact: Artifact) -> Subject:
        return Subject(artifact.path, artifact.digest, target.engine, target.engine_versions)

    def _try(
        self,
        target: TargetProfile,
        artifacts: Mapping[str, Artifact],
        original: Measured,
        timed: TimedRun | None,
        records: dict[str, CandidateRecord],
    ) -> dict[str, Trial]:
        trials: dict[str, Trial] = {}
        for candidate in candidates_for(target):
            self.tick(f"{target.name}: measuring {candidate.name}")
            artifact = artifacts.get(candidate.name)
            if artifact is None:
                continue
            subject = self._subject(target, artifact)
            try:
                run = self.measurer.measure(subject, self.study.tuning, timed=timed)
            except CandidateError as exc:
                records[candidate.name] = _dropped(candidate, str(exc))
                continue
            rows = slice(0, self.study.tuning_n)
            drop, quality, _ = self._compare(original, run, self.study.tuning_labels, rows)
            figures = select.Figures(candidate, artifact.size, drop, run.evaluation.latency)
            trials[candidate.name] = Trial(artifact, run, figures, quality)
        return trials

    def _compare(
        self, original: Measured, variant: Measured, labels: Array | None, rows: slice
    ) -> tuple[Drop, float, float]:
        """Paired drop, and mean quality of variant and original."""
        budget = self.study.contract.quality
        metric, name = METRICS[budget.metric], scored_output(self.study.contract).name
        before, after = original.outputs[name][rows], variant.outputs[name][rows]
        truth = labels if metric.needs_labels else before
        assert truth is not None  # registration refuses a labelled metric without labels
        scores = metric.score(before, truth), metric.score(after, truth)
        drop = metric.drop(*scores, confidence=budget.confidence)
        return drop, float(np.mean(scores[1])), float(np.mean(scores[0]))

    def _finish(
        self, target: TargetProfile, level: Validation, trial: Trial, original_tuning: Measured
    ) -> Chosen:
        """Golden set, evaluation split and gates of one candidate."""
        candidate = trial.figures.candidate
        self.tick(f"{target.name}: final evaluation of {candidate.name}")
        recorded = {
            name: array[self.study.tuning_n :] for name, array in trial.measured.outputs.items()
        }
        golden = derive.golden(self.study.golden_inputs, recorded)
        tolerance = codec.encode(derive.tolerance(candidate.precision, recorded))
        subject = Subject(
            trial.artifact.path,
            trial.artifact.digest,
            target.engine,
            target.engine_versions,
            golden,
            tolerance,
        )
        try:
            final = self.measurer.measure(subject, self.study.evaluation)
        except CandidateError as exc:
            # It ran on the tuning data a moment ago: not the candidate's fault alone.
            raise GateFailedError(f"{target.name}: {candidate.name}: {exc}") from exc
        original = self._original(target, self.study.evaluation, None)
        labels = self.study.evaluation_labels
        drop, quality, original_quality = self._compare(original, final, labels, slice(None))
        budget = self.study.contract.budget_for(target.name)
        native = level is Validation.NATIVE
        latency = trial.figures.latency if native else None
        baseline = original_tuning.evaluation.latency if native else None
        verdicts = gates.judge(
            target,
            level=level,
            quality_verdict=gates.quality(drop, self.study.contract.quality),
            size_verdict=gates.size(trial.artifact.size, self.study.original.size, budget),
            golden_verdict=gates.golden(final.evaluation.golden),
            latency_verdict=gates.latency(latency, baseline, budget, is_fp32=candidate == FP32),
        )
        return Chosen(
            trial=trial,
            golden=golden,
            tolerance=tolerance,
            final=final,
            drop=drop,
            quality=quality,
            original_quality=original_quality,
            original_latency_ms=baseline.p50_ms if baseline else None,
            verdicts=verdicts,
            candidates=(),
        )

    def _explain(
        self,
        chosen: Chosen,
        trials: Mapping[str, Trial],
        records: dict[str, CandidateRecord],
        attempts: int,
    ) -> None:
        winner = chosen.trial.figures
        first = "fastest" if winner.latency else "smallest"
        reason = f"{first} within the quality budget"
        if attempts > 1:
            reason = f"{first} of those that passed the gates"
        records[winner.candidate.name] = _record(chosen.trial, "chosen", reason)
        drop_max = self.study.contract.quality.drop_max
        for name, trial in trials.items():
            if name not in records:
                why = select.explain(trial.figures, winner, drop_max)
                records[name] = _record(trial, "passed_over", why)


def _dropped(candidate: Candidate, reason: str) -> CandidateRecord:
    return CandidateRecord(
        name=candidate.name, precision=candidate.precision, outcome="dropped", reason=reason
    )


def _record(trial: Trial, outcome: str, reason: str) -> CandidateRecord:
    figures = trial.figures
    return CandidateRecord(
        name=figures.candidate.name,
        precision=figures.candidate.precision,
        outcome=outcome,
        reason=reason,
        size_bytes=figures.size_bytes,
        quality=trial.quality,
        quality_drop=figures.drop.estimate,
        quality_drop_upper=figures.drop.upper,
        latency_ms=figures.latency.p50_ms if figures.latency else None,
    )
