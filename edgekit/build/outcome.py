"""What became of candidates: trials that ran, the one that was settled on, and their records."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.build import select
from edgekit.build.candidates import Candidate
from edgekit.build.judge import Comparison
from edgekit.build.measure import Measured
from edgekit.build.record import CandidateRecord, SearchRecord
from edgekit.build.study import Artifact
from edgekit.build.target import Validation
from edgekit.contracts.shadow import Expectation
from edgekit.contracts.verdict import Outcome, Verdict, combine
from edgekit.stats.bounds import Drop

NOT_SEARCHED = SearchRecord(complete=True, tried=0, next=None)


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
    expectation: Expectation | None = None  # of its agreement with the original
    looks: int = 1  # at the evaluation split, this one included
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


def dropped(candidate: Candidate, reason: str) -> CandidateRecord:
    """The record of a candidate that could not be made or run."""
    return CandidateRecord(
        name=candidate.name,
        precision=candidate.precision,
        engine=candidate.engine.value,
        outcome="dropped",
        reason=reason,
    )


def record(trial: Trial, outcome: str, reason: str) -> CandidateRecord:
    """The record of a candidate that ran."""
    figures = trial.figures
    return CandidateRecord(
        name=figures.candidate.name,
        precision=figures.candidate.precision,
        engine=figures.candidate.engine.value,
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
        coverage=trial.artifact.coverage,
    )
