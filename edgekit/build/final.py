"""The last step of a variant: golden set, evaluation split, emulation, gates.

Only here is the evaluation split looked at, and each look is paid for: when one candidate fails and
the next is judged on the same samples, it is judged at a stricter confidence, so that all looks
together keep the one that the contract asks for (`edgekit.stats.bounds.spent`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from edgekit.build import derive, emulate, gates, tools
from edgekit.build.candidates import Candidate, Engine, Scheme
from edgekit.build.emulate import Emulator
from edgekit.build.host import Host
from edgekit.build.judge import Comparison, compare
from edgekit.build.measure import (
    CandidateError,
    CandidateMemoryError,
    Measured,
    Measurer,
    Subject,
    TimedRun,
    neutral,
)
from edgekit.build.outcome import Chosen, Trial
from edgekit.build.processes import MEMORY_HINT
from edgekit.build.study import Artifact, Study
from edgekit.build.target import Gate, TargetProfile, Validation
from edgekit.contracts import codec
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import GateFailedError, ResourceError, UnavailableError
from edgekit.contracts.shadow import Expectation
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit.registry.npz import Array
from edgekit.stats import bounds


def at_look(contract: Contract, look: int) -> Contract:
    """``contract`` with the confidence that look number ``look``, from 0, has to reach."""
    quality = contract.quality
    confidence = bounds.spent(quality.confidence, look)
    return msgspec.structs.replace(
        contract, quality=msgspec.structs.replace(quality, confidence=confidence)
    )


def subject_of(
    target: TargetProfile, artifact: Artifact, candidate: Candidate | None = None
) -> Subject:
    """What is measured of ``artifact``, run as ``candidate`` says, or as the original."""
    engine = candidate.engine if candidate else Engine.ONNXRUNTIME
    return Subject(
        tuple(artifact.contents()),
        artifact.digest,
        engine.value,
        target.versions_of(engine.value),
        candidate.engine_options if candidate else {},
    )


@dataclass
class Finisher:
    """Judges candidates of one study. ``tick`` announces each unit of work."""

    study: Study
    measurer: Measurer
    host: Host
    tick: Callable[[str], None]
    _emulators: dict[str, Emulator | UnavailableError] = field(default_factory=dict)

    def original(self, target: TargetProfile, *, timed: TimedRun | None, final: bool) -> Measured:
        """The registered model on tuning and golden data, or on the evaluation split.

        Raises:
            BadInputError: it cannot be run.
            ResourceError: not in the memory that the build may take.
        """
        self.tick(f"{target.name}: measuring the original")
        # It takes what preprocessing gives, whatever the variants do.
        contract = neutral(self.study.contract)
        subject = replace(subject_of(target, self.study.original), contract=contract)
        data = self.study.evaluation if final else self.study.tuning
        try:
            return self.measurer.measure(subject, data, timed=timed)
        except CandidateMemoryError as exc:
            raise ResourceError(f"the original model: {exc}", hint=MEMORY_HINT) from exc
        except CandidateError as exc:
            raise tools.unusable_original(str(exc)) from exc

    def fails_unseen(
        self, target: TargetProfile, trial: Trial, original_tuning: Measured
    ) -> Verdict | None:
        """The first gate that fails whatever the evaluation split says; looking costs nothing."""
        latency = self._latency(target, trial, original_tuning)
        found = (self._size(target, trial), latency, self._coverage(target, trial))
        wanted = (Gate.SIZE, Gate.LATENCY, Gate.COVERAGE)
        for gate, verdict in zip(wanted, found, strict=True):
            if gate in target.gates and verdict.outcome is not Outcome.PASS:
                return verdict
        if self._is_emulated(target):
            try:
                self._emulator(target)
            except UnavailableError as exc:
                return _not_emulated(target, self.study.contract, exc)
        return None

    def finish(
        self, target: TargetProfile, trial: Trial, original_tuning: Measured, *, look: int
    ) -> Chosen:
        """Golden set, evaluation split and gates of one candidate.

        Raises:
            GateFailedError: it no longer runs.
        """
        candidate = trial.figures.candidate
        self.tick(f"{target.name}: final evaluation of {candidate.name}")
        recorded = self._recorded(target, trial)
        golden = derive.golden(self.study.golden_inputs, recorded)
        tolerance = codec.encode(derive.tolerance(candidate, recorded))
        subject = subject_of(target, trial.artifact, candidate)
        subject = replace(subject, golden=golden, tolerance=tolerance)
        try:
            final = self.measurer.measure(subject, self.study.evaluation)
        except CandidateError as exc:
            # It ran on the tuning data a moment ago: not the candidate's fault alone.
            raise GateFailedError(f"{target.name}: {candidate.name}: {exc}") from exc
        original = self.original(target, timed=None, final=True)
        # What computes the same as the original has nothing to prove, whatever was tried before.
        contract = self.study.contract
        contract = contract if candidate.unquantized else at_look(contract, look)
        found = self._compare(contract, original, final, slices=True)
        emulator, emulated = self._emulated(target, subject, original, contract)
        level = self.host.validation(target)
        native = level is Validation.NATIVE
        if emulator is not None and not native:
            level = Validation.EMULATED
        verdicts = gates.judge(
            target,
            level=level,
            quality_verdict=gates.quality(found.drop, contract.quality, look=look),
            size_verdict=self._size(target, trial),
            golden_verdict=gates.golden(final.evaluation.golden),
            latency_verdict=self._latency(target, trial, original_tuning),
            emulated_verdict=emulated,
            coverage_verdict=self._coverage(target, trial),
            memory_verdict=gates.memory(
                final.evaluation.rss_peak_bytes if native else None,
                contract.budget_for(target.name),
                target,
            ),
            slice_verdicts=[gates.in_slice(each, contract.quality) for each in found.slices],
        )
        baseline = original_tuning.evaluation.latency if native else None
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
            expectation=self._expectation(original, final),
            looks=look + 1,
        )

    def _recorded(self, target: TargetProfile, trial: Trial) -> Mapping[str, Array]:
        """What the candidate answers to the golden inputs, as a device will replay them."""
        candidate = trial.figures.candidate
        if candidate.scheme is Scheme.DYNAMIC:
            # Its scales follow from the whole batch: beside other samples it answers differently.
            subject = subject_of(target, trial.artifact, candidate)
            return self.measurer.measure(subject, self.study.golden).outputs
        outputs = trial.measured.outputs
        return {name: array[self.study.tuning_n :] for name, array in outputs.items()}

    def _expectation(self, original: Measured, variant: Measured) -> Expectation | None:
        n = self.study.evaluation_n
        outputs = ({k: v[:n] for k, v in run.outputs.items()} for run in (original, variant))
        return derive.expectation(self.study.contract, *outputs)

    def _size(self, target: TargetProfile, trial: Trial) -> Verdict:
        budget = self.study.contract.budget_for(target.name)
        return gates.size(trial.artifact.size, self.study.original.size, budget)

    def _coverage(self, target: TargetProfile, trial: Trial) -> Verdict:
        candidate = trial.figures.candidate
        meant = candidate.scheme in {Scheme.STATIC, Scheme.NNCF}
        return gates.coverage(trial.artifact.coverage, target.coverage_min, quantized=meant)

    def _latency(self, target: TargetProfile, trial: Trial, original: Measured) -> Verdict:
        native = self.host.validation(target) is Validation.NATIVE
        return gates.latency(
            trial.measured.evaluation.latency if native else None,
            original.evaluation.latency if native else None,
            self.study.contract.budget_for(target.name),
            unquantized=trial.figures.candidate.unquantized,
        )

    def _compare(
        self, contract: Contract, original: Measured, variant: Measured, *, slices: bool
    ) -> Comparison:
        n = self.study.evaluation_n
        return compare(
            contract,
            original.outputs,
            variant.outputs,
            self.study.evaluation_labels,
            rows=n,
            expected_n=n,
            slices=self.study.evaluation_slices if slices else None,
        )

    def _emulated(
        self, target: TargetProfile, subject: Subject, original: Measured, contract: Contract
    ) -> tuple[Emulator | None, Verdict]:
        """The artifact on the emulated CPU against the original here, over the evaluation split."""
        budget = contract.quality
        if not self._is_emulated(target):
            return None, gates.emulated(None, None, budget, "the target does not ask for it")
        self.tick(f"{target.name}: running the artifact on an emulated {target.emulator}")
        try:
            emulator = self._emulator(target)
            run = self.measurer.measure(subject, self.study.evaluation, emulator=emulator)
        except UnavailableError as exc:
            return None, _not_emulated(target, contract, exc)
        except CandidateError as exc:
            return None, gates.emulated(None, None, budget, f"{emulator.facts}: {exc}")
        if strange := emulate.unlike(target, run.evaluation.machine, run.evaluation.isa):
            return None, gates.emulated(None, None, budget, f"{emulator.facts}: {strange}")
        found = self._compare(contract, original, run, slices=False)
        return emulator, gates.emulated(found.drop, run.evaluation.golden, budget, emulator.facts)

    def _emulator(self, target: TargetProfile) -> Emulator:
        """The target's emulator, tried once: what is missing is missing for every candidate."""
        if target.name not in self._emulators:
            try:
                found = emulate.ready(target, self.host, self.measurer.cache)
                self._emulators[target.name] = found
            except UnavailableError as exc:
                self._emulators[target.name] = exc
        known = self._emulators[target.name]
        if isinstance(known, UnavailableError):
            raise known
        return known

    def _is_emulated(self, target: TargetProfile) -> bool:
        native = self.host.validation(target) is Validation.NATIVE
        required = target.validation_required is Validation.EMULATED and not native
        return required or Gate.EMULATED in target.gates


def _not_emulated(target: TargetProfile, contract: Contract, exc: UnavailableError) -> Verdict:
    """Whatever is missing: what did not run has not passed."""
    why = f"no emulated {target.emulator}: {exc.message}; {exc.hint}"
    return gates.emulated(None, None, contract.quality, why)
