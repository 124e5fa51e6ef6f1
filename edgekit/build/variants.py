"""From a normalised model to the chosen variant of one target."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edgekit.build import derive, emulate, gates, search, select, tools
from edgekit.build.candidates import Candidate, candidates_for
from edgekit.build.emulate import Emulator
from edgekit.build.host import Host
from edgekit.build.judge import Comparison, compare
from edgekit.build.measure import (
    CandidateError,
    Measured,
    Measurer,
    Subject,
    TimedRun,
    latency_runs,
)
from edgekit.build.quantize import Quantization
from edgekit.build.record import CandidateRecord, SearchRecord
from edgekit.build.study import Artifact, Study
from edgekit.build.target import Gate, TargetProfile, Validation
from edgekit.contracts import codec, digest
from edgekit.contracts.errors import GateFailedError
from edgekit.contracts.verdict import Outcome, Verdict, combine
from edgekit.registry.npz import Array
from edgekit.stats.bounds import Drop

NOT_SEARCHED = SearchRecord(complete=True, tried=0, next=None)
_MEASURED_AT_ONCE = 2  # where nothing is timed; each is a process of its own


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
    comparison: Comparison
    original_latency_ms: float | None
    level: Validation
    emulated_on: str | None
    verdicts: tuple[Verdict, ...]
    candidates: tuple[CandidateRecord, ...] = ()
    search: SearchRecord = NOT_SEARCHED

    @property
    def drop(self) -> Drop:
        """Drop on the evaluation split."""
        return self.comparison.drop

    @property
    def outcome(self) -> Outcome:
        """Joint outcome of the gates."""
        return combine(self.verdicts)


@dataclass
class _Round:
    """What is known about one target so far."""

    target: TargetProfile
    original: Measured
    timed: TimedRun | None
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    dropped: dict[Candidate, str] = field(default_factory=dict)
    seen: dict[Candidate, None] = field(default_factory=dict)  # in the order they were tried

    def known(self, drop_max: float) -> search.Known:
        figures = {candidate: trial.figures for candidate, trial in self.trials.items()}
        dropped = frozenset(self.dropped)
        return search.Known(figures, dropped, drop_max, timed=self.timed is not None)


@dataclass
class VariantBuilder:
    """Builds variants of one study. ``tick`` announces each unit of work."""

    study: Study
    quantization: Quantization
    measurer: Measurer
    host: Host
    tick: Callable[[str], None]

    def build(self, target: TargetProfile, *, budget_s: float) -> Chosen:
        """Try every candidate of ``target``, search for ``budget_s`` seconds, settle on one.

        Raises:
            BadInputError: the original itself cannot be run.
            GateFailedError: no candidate is left.
            ResourceError: disk or memory is exhausted.
        """
        deadline = time.monotonic() + budget_s
        state = self._first_round(target)
        searched = self._search(state, deadline)
        shipping = {c: t for c, t in state.trials.items() if not c.only}
        records = {c: _dropped(c, why) for c, why in state.dropped.items()}
        drop_max = self.study.contract.quality.drop_max
        order = select.preference([trial.figures for trial in shipping.values()], drop_max)
        if not order:
            raise GateFailedError(
                f"{target.name}: no candidate could be built",
                hint="; ".join(f"{entry.name}: {entry.reason}" for entry in records.values()),
            )
        attempts: list[Chosen] = []
        for figures in order:
            trial = shipping[figures.candidate]
            attempts.append(self._finish(target, trial, state.original))
            if attempts[-1].outcome is Outcome.PASS:
                break
            why = next(v for v in attempts[-1].verdicts if v.outcome is not Outcome.PASS)
            reason = f"gate {why.metric}: {derive.timeless(why).reason}"
            records[figures.candidate] = _record(trial, "gate_failed", reason)
        result = attempts[-1]
        if result.outcome is Outcome.PASS:
            self._explain(result, shipping, records, len(attempts))
        for candidate, trial in state.trials.items():
            if candidate.only:
                records[candidate] = _record(trial, "probe", "one layer quantized alone")
        best = select.front([trial.figures for trial in shipping.values()])
        listed = (
            msgspec.structs.replace(records[candidate], pareto=candidate.name in best)
            for candidate in state.seen
        )
        return replace(result, candidates=tuple(listed), search=searched)

    def _first_round(self, target: TargetProfile) -> _Round:
        """Quantize and measure the fixed set that every search begins with."""
        candidates = candidates_for(target, self.study.structure)
        self.tick(f"{target.name}: quantizing {len(candidates) - 1} candidates")
        made = self.quantization.make(candidates)
        timed = None
        if self.host.validation(target) is Validation.NATIVE:
            timed = self._timed_run(found for found in made.values() if isinstance(found, Artifact))
        state = _Round(target, self._original(target, self.study.tuning, timed), timed)
        self._measure(state, candidates)
        return state

    def _search(self, state: _Round, deadline: float) -> SearchRecord:
        """Go on as long as there is something to try, and time; what is cached takes none."""
        drop_max = self.study.contract.quality.drop_max
        tried = 0
        while batch := search.next_candidates(state.known(drop_max), self.study.structure):
            if time.monotonic() < deadline:
                self.quantization.make(batch)
                affordable = batch[:_MEASURED_AT_ONCE]
            else:
                affordable = tuple(each for each in batch if self._is_known(state, each))
            if not affordable:
                return SearchRecord(complete=False, tried=tried, next=batch[0].name)
            self._measure(state, affordable)
            tried += len(affordable)
        return SearchRecord(complete=True, tried=tried, next=None)

    def _is_known(self, state: _Round, candidate: Candidate) -> bool:
        made = self.quantization.find(candidate)
        if not isinstance(made, Artifact):
            return made is not None
        timed = None if candidate.only else state.timed
        subject = self._subject(state.target, made)
        return self.measurer.knows(subject, self.study.tuning, timed=timed)

    def _measure(self, state: _Round, candidates: Sequence[Candidate]) -> None:
        """Run what was made of ``candidates`` over the tuning data."""
        state.seen.update(dict.fromkeys(candidates))
        made = self.quantization.make(candidates)
        owners = {trial.artifact.digest: c.name for c, trial in state.trials.items()}
        todo: dict[Candidate, Artifact] = {}
        for candidate in candidates:
            artifact = made[candidate]
            if isinstance(artifact, str):
                state.dropped[candidate] = artifact
            elif artifact.digest in owners and not candidate.only:
                state.dropped[candidate] = f"the same file as {owners[artifact.digest]}"
            else:
                owners[artifact.digest] = candidate.name
                todo[candidate] = artifact

        def run(candidate: Candidate) -> Trial | str:
            self.tick(f"{state.target.name}: measuring {candidate.name}")
            try:
                return self._trial(state, candidate, todo[candidate])
            except CandidateError as exc:
                return str(exc)

        alone = state.timed is not None and any(not candidate.only for candidate in todo)
        with ThreadPoolExecutor(1 if alone else _MEASURED_AT_ONCE) as pool:
            for candidate, found in zip(todo, pool.map(run, todo), strict=True):
                if isinstance(found, str):
                    state.dropped[candidate] = found
                else:
                    state.trials[candidate] = found

    def _trial(self, state: _Round, candidate: Candidate, artifact: Artifact) -> Trial:
        timed = None if candidate.only else state.timed
        subject = self._subject(state.target, artifact)
        run = self.measurer.measure(subject, self.study.tuning, timed=timed)
        found = compare(
            self.study.contract,
            state.original.outputs,
            run.outputs,
            self.study.tuning_labels,
            rows=self.study.tuning_n,
            expected_n=self.study.evaluation_n,
            slices=self.study.tuning_slices,
        )
        drop_max = self.study.contract.quality.drop_max
        figures = select.Figures(
            candidate,
            artifact.size,
            found.drop,
            run.evaluation.latency,
            found.expected,
            found.noise,
            # Few samples a slice have wide bounds: here the estimate says what is plainly broken.
            tuple(each.name for each in found.slices if each.drop.estimate > drop_max),
        )
        return Trial(artifact, run, figures, found.quality)

    def _timed_run(self, artifacts: Iterable[Artifact]) -> TimedRun:
        """The run in which the original and all candidates of a target are timed."""
        together = sorted({self.study.original.digest, *(a.digest for a in artifacts)})
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

    def _finish(self, target: TargetProfile, trial: Trial, original_tuning: Measured) -> Chosen:
        """Golden set, evaluation split and gates of one candidate."""
        candidate = trial.figures.candidate
        self.tick(f"{target.name}: final evaluation of {candidate.name}")
        recorded = {
            name: array[self.study.tuning_n :] for name, array in trial.measured.outputs.items()
        }
        golden = derive.golden(self.study.golden_inputs, recorded)
        tolerance = codec.encode(derive.tolerance(candidate, recorded))
        subject = replace(self._subject(target, trial.artifact), golden=golden, tolerance=tolerance)
        try:
            final = self.measurer.measure(subject, self.study.evaluation)
        except CandidateError as exc:
            # It ran on the tuning data a moment ago: not the candidate's fault alone.
            raise GateFailedError(f"{target.name}: {candidate.name}: {exc}") from exc
        original = self._original(target, self.study.evaluation, None)
        n = self.study.evaluation_n
        labels: Array | None = self.study.evaluation_labels
        contract = self.study.contract
        found = compare(
            contract,
            original.outputs,
            final.outputs,
            labels,
            rows=n,
            expected_n=n,
            slices=self.study.evaluation_slices,
        )
        native = self.host.validation(target) is Validation.NATIVE
        emulator, emulated = self._emulated(target, subject, original)
        level = self.host.validation(target)
        if emulator is not None and not native:
            level = Validation.EMULATED
        latency = trial.figures.latency if native else None
        baseline = original_tuning.evaluation.latency if native else None
        budget = contract.budget_for(target.name)
        verdicts = gates.judge(
            target,
            level=level,
            quality_verdict=gates.quality(found.drop, contract.quality),
            size_verdict=gates.size(trial.artifact.size, self.study.original.size, budget),
            golden_verdict=gates.golden(final.evaluation.golden),
            latency_verdict=gates.latency(
                latency, baseline, budget, unquantized=candidate.unquantized
            ),
            emulated_verdict=emulated,
            slice_verdicts=[gates.in_slice(each, contract.quality) for each in found.slices],
        )
        return Chosen(
            trial=trial,
            golden=golden,
            tolerance=tolerance,
            final=final,
            comparison=found,
            original_latency_ms=baseline.p50_ms if baseline else None,
            level=level,
            emulated_on=emulator.facts if emulator else None,
            verdicts=verdicts,
        )

    def _emulated(
        self, target: TargetProfile, subject: Subject, original: Measured
    ) -> tuple[Emulator | None, Verdict]:
        """The artifact on the emulated CPU against the original here, over the evaluation split."""
        budget = self.study.contract.quality
        native = self.host.validation(target) is Validation.NATIVE
        required = target.validation_required is Validation.EMULATED and not native
        if Gate.EMULATED not in target.gates and not required:
            return None, gates.emulated(None, None, budget, "the target does not ask for it")
        emulator = emulate.find(target, self.host)
        if emulator is None:
            why = f"no emulator of {target.emulator} on this machine (install qemu-user)"
            return None, gates.emulated(None, None, budget, why)
        self.tick(f"{target.name}: running the artifact on an emulated {target.emulator}")
        try:
            run = self.measurer.measure(subject, self.study.evaluation, emulator=emulator)
        except CandidateError as exc:
            return None, gates.emulated(None, None, budget, f"{emulator.facts}: {exc}")
        n = self.study.evaluation_n
        labels = self.study.evaluation_labels
        contract = self.study.contract
        found = compare(contract, original.outputs, run.outputs, labels, rows=n, expected_n=n)
        golden = run.evaluation.golden
        return emulator, gates.emulated(found.drop, golden, budget, emulator.facts)

    def _explain(
        self,
        chosen: Chosen,
        trials: Mapping[Candidate, Trial],
        records: dict[Candidate, CandidateRecord],
        attempts: int,
    ) -> None:
        winner = chosen.trial.figures
        first = "fastest" if winner.latency else "smallest"
        reason = f"{first} within the quality budget"
        if attempts > 1:
            reason = f"{first} of those that passed the gates"
        records[winner.candidate] = _record(chosen.trial, "chosen", reason)
        drop_max = self.study.contract.quality.drop_max
        for candidate, trial in trials.items():
            if candidate not in records:
                why = select.explain(trial.figures, winner, drop_max)
                records[candidate] = _record(trial, "passed_over", why)


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
        noise=figures.noise,
        floats=figures.candidate.floats,
        reduced=trial.artifact.reduced,
    )
