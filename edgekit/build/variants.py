"""From a normalised model to the chosen variant of one target."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile

import msgspec

from edgekit.build import derive, search, select
from edgekit.build.candidates import (
    CONVOLUTIONS,
    Candidate,
    Scheme,
    by_nncf,
    candidates_for,
    with_layout,
)
from edgekit.build.final import Finisher, at_look
from edgekit.build.host import Host
from edgekit.build.judge import can_pass, compare
from edgekit.build.measure import (
    CandidateError,
    Measured,
    Measurer,
    TimedRun,
    latency_runs,
)
from edgekit.build.outcome import Chosen, Trial, dropped, record
from edgekit.build.quantize import Quantization
from edgekit.build.record import CandidateRecord, SearchRecord
from edgekit.build.study import Artifact, Study
from edgekit.build.target import TargetProfile
from edgekit.contracts import codec, digest
from edgekit.contracts.errors import GateFailedError
from edgekit.contracts.verdict import Outcome, Verdict

_KEPT_LOOK = (
    "not looked at: the evaluation data are too few for another look, and the last one that can "
    "prove anything is kept for the model in full precision"
)
_ALWAYS_BESIDE_FLOAT = 1  # no budget leaves this out, nor full precision by any engine


@dataclass
class _Round:
    """What is known about one target so far."""

    target: TargetProfile
    first: tuple[Candidate, ...]  # the fixed set that every search begins with
    original: Measured
    timed: TimedRun | None
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    dropped: dict[Candidate, str] = field(default_factory=dict)
    seen: dict[Candidate, None] = field(default_factory=dict)  # in the order they were tried

    def known(self, drop_max: float) -> search.Known:
        figures = {candidate: trial.figures for candidate, trial in self.trials.items()}
        out = frozenset(self.dropped)
        return search.Known(figures, out, drop_max, timed=self.timed is not None)

    def left(self) -> tuple[Candidate, ...]:
        """What of the first round was not tried."""
        return tuple(each for each in self.first if each not in self.seen)


@dataclass
class VariantBuilder:
    """Builds variants of one study. ``tick`` announces each unit of work."""

    study: Study
    quantization: Quantization
    measurer: Measurer
    host: Host
    tick: Callable[[str], None]
    finisher: Finisher

    def build(self, target: TargetProfile, *, budget_s: float) -> Chosen:
        """Search among candidates of ``target`` for ``budget_s`` seconds, settle on one.

        Raises:
            BadInputError: the original itself cannot be run.
            GateFailedError: no candidate is left.
            ResourceError: disk or memory is exhausted.
        """
        deadline = time.monotonic() + budget_s
        state = self._begin(target)
        searched = self._search(state, deadline)
        shipping = {c: t for c, t in state.trials.items() if not c.only}
        records = {c: dropped(c, why) for c, why in state.dropped.items()}
        order = self._order(state, shipping)
        if not order:
            raise GateFailedError(
                f"{target.name}: no candidate could be built",
                hint="; ".join(f"{entry.name}: {entry.reason}" for entry in records.values()),
            )
        result = self._settle(state, order, records)
        if result.outcome is Outcome.PASS:
            self._explain(result, shipping, records)
        for candidate, trial in state.trials.items():
            if candidate.only:
                records[candidate] = record(trial, "probe", "one layer quantized alone")
        best = select.front([trial.figures for trial in shipping.values()])
        listed = (
            msgspec.structs.replace(records[candidate], pareto=candidate.name in best)
            for candidate in state.seen
        )
        return replace(result, candidates=tuple(listed), search=searched)

    def _order(self, state: _Round, shipping: Mapping[Candidate, Trial]) -> list[Trial]:
        """Best first. Where latency decides, those that are close run a race to tell them apart."""
        drop_max = self.study.contract.quality.drop_max
        order = select.preference([trial.figures for trial in shipping.values()], drop_max)
        close = select.close(order) if state.timed else []
        if len(close) > 1:
            self.tick(f"{state.target.name}: timing {len(close)} candidates in turns")
            subjects = [
                self.measurer.subject(
                    state.target, shipping[each.candidate].artifact, each.candidate
                )
                for each in close
            ]
            try:
                found = self.measurer.race(subjects, self.study.tuning)
            except CandidateError:
                found = []  # each ran alone: what their own runs said stands
            raced = [
                replace(each, latency=latency) for each, latency in zip(close, found, strict=False)
            ]
            best = select.preference(raced, drop_max, tie_ratio=select.RACE_TIE_RATIO)
            order = [*best, *(each for each in order if not found or each not in close)]
        return [replace(shipping[each.candidate], figures=each) for each in order]

    def _settle(
        self, state: _Round, order: Sequence[Trial], records: dict[Candidate, CandidateRecord]
    ) -> Chosen:
        """The first of ``order`` that passes its gates; the last one judged when none does."""
        result: Chosen | None = None
        look = 0
        # The original itself needs no look: what comes after it is never asked.
        ahead = takewhile(lambda trial: not trial.figures.candidate.unquantized, order)
        faster_floats = any(trial.figures.candidate.is_float_otherwise for trial in ahead)
        for trial in order:
            candidate = trial.figures.candidate
            kept = faster_floats and not (candidate.unquantized or candidate.is_float_otherwise)
            if kept and self._is_last_look(look):
                records[candidate] = record(trial, "passed_over", _KEPT_LOOK)
                continue
            unseen = self.finisher.fails_unseen(state.target, trial, state.original)
            if unseen is not None and (result is not None or trial is not order[-1]):
                records[candidate] = _failed(trial, unseen)
                continue
            result = self.finisher.finish(state.target, trial, state.original, look=look)
            if result.outcome is Outcome.PASS:
                return result
            why = next(v for v in result.verdicts if v.outcome is not Outcome.PASS)
            records[candidate] = _failed(trial, why)
            look += 1
        assert result is not None  # the last of order is judged when no other was
        return result

    def _is_last_look(self, look: int) -> bool:
        """Whether a later look at the evaluation data could prove nothing, whatever it showed."""
        later = at_look(self.study.contract, look + 1).quality
        return not can_pass(later, self.study.evaluation_n)

    def _begin(self, target: TargetProfile) -> _Round:
        """Measure the original, and what there is to compare it with at the least."""
        candidates = candidates_for(target, self.study.structure)
        timed = self._timed_run(candidates) if self.measurer.is_real(target) else None
        original = self.finisher.original(target, timed=timed, final=False)
        state = _Round(target, candidates, original, timed)
        count = sum(each.scheme is Scheme.NONE for each in candidates)  # they come first
        floats = candidates[:count]
        if timed is not None and CONVOLUTIONS & set(self.study.structure.ops):
            floats += tuple(with_layout(each) for each in floats if each.unquantized)
        self._measure(state, (*floats, *candidates[count : count + _ALWAYS_BESIDE_FLOAT]))
        return state

    def _search(self, state: _Round, deadline: float) -> SearchRecord:
        """Go on as long as there is something to try, and time; what is cached takes none."""
        drop_max = self.study.contract.quality.drop_max
        structure = self.study.structure
        others = by_nncf(state.target, structure)
        made: dict[Candidate, Artifact | str] = {}
        tried = 0
        while batch := state.left() or search.next_candidates(
            state.known(drop_max), structure, others
        ):
            todo = [each for each in batch if each not in made]
            if todo and time.monotonic() < deadline:
                self.tick(f"{state.target.name}: quantizing {len(todo)} candidates")
                made |= self.quantization.make(todo, until=deadline)
            if time.monotonic() < deadline:
                affordable = tuple(each for each in batch if each in made)
                affordable = affordable[: self._at_once(state, affordable)]
            else:
                affordable = tuple(each for each in batch if self._is_known(state, each))
            if not affordable:
                return SearchRecord(complete=False, tried=tried, next=batch[0].name)
            self._measure(state, affordable)
            tried += sum(each not in state.first for each in affordable)
        return SearchRecord(complete=True, tried=tried, next=None)

    def _is_known(self, state: _Round, candidate: Candidate) -> bool:
        made = self.quantization.find(candidate)
        if not isinstance(made, Artifact):
            return made is not None
        timed = None if candidate.only else state.timed
        subject = self.measurer.subject(state.target, made, candidate)
        return self.measurer.knows(subject, self.study.tuning, timed=timed)

    def _measure(self, state: _Round, candidates: Sequence[Candidate]) -> None:
        """Run what was made of ``candidates`` over the tuning data."""
        state.seen.update(dict.fromkeys(candidates))
        made = self.quantization.make(candidates)
        owners = {(t.artifact.digest, c.layout): c.name for c, t in state.trials.items()}
        todo: dict[Candidate, Artifact] = {}
        for candidate in candidates:
            artifact = made[candidate]
            key = ("" if isinstance(artifact, str) else artifact.digest, candidate.layout)
            if isinstance(artifact, str):
                state.dropped[candidate] = artifact
            elif key in owners and not candidate.only:
                state.dropped[candidate] = f"the same file as {owners[key]}"
            else:
                owners[key] = candidate.name
                todo[candidate] = artifact

        at_once = self._at_once(state, todo)

        def run(candidate: Candidate) -> Trial | str:
            self.tick(f"{state.target.name}: measuring {candidate.name}")
            try:
                return self._trial(state, candidate, todo[candidate], at_once)
            except CandidateError as exc:
                return str(exc)

        with ThreadPoolExecutor(at_once) as pool:
            for candidate, found in zip(todo, pool.map(run, todo), strict=True):
                if isinstance(found, str):
                    state.dropped[candidate] = found
                else:
                    state.trials[candidate] = found

    def _at_once(self, state: _Round, candidates: Collection[Candidate]) -> int:
        """How many are measured side by side: what is timed runs alone, and so does a device."""
        timed = state.timed is not None and any(not candidate.only for candidate in candidates)
        if timed or state.target.name in self.measurer.devices:
            return 1
        return self.measurer.processes.at_once(len(candidates))

    def _trial(
        self, state: _Round, candidate: Candidate, artifact: Artifact, at_once: int
    ) -> Trial:
        timed = None if candidate.only else state.timed
        subject = self.measurer.subject(state.target, artifact, candidate)
        run = self.measurer.measure(subject, self.study.tuning, timed=timed, at_once=at_once)
        found = compare(
            at_look(self.study.contract, 0),
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

    def _timed_run(self, candidates: Sequence[Candidate]) -> TimedRun:
        """The run in which the original and all candidates of a target are timed.

        It does not depend on how far a search came: the next build goes on in it.
        """
        together = [self.study.original.digest, self.study.normalised.digest, candidates]
        name = digest.of_bytes(codec.encode(together))
        return TimedRun(name, latency_runs(self.study.original.size))

    def _explain(
        self,
        chosen: Chosen,
        trials: Mapping[Candidate, Trial],
        records: dict[Candidate, CandidateRecord],
    ) -> None:
        winner = chosen.trial.figures
        first = "fastest" if winner.latency else "smallest"
        reason = f"{first} within the quality budget"
        if any(entry.outcome == "gate_failed" for entry in records.values()):
            reason = f"{first} of those that passed the gates"
        records[winner.candidate] = record(chosen.trial, "chosen", reason)
        drop_max = self.study.contract.quality.drop_max
        for candidate, trial in trials.items():
            if candidate not in records:
                why = select.explain(trial.figures, winner, drop_max)
                records[candidate] = record(trial, "passed_over", why)


def _failed(trial: Trial, why: Verdict) -> CandidateRecord:
    return record(trial, "gate_failed", f"gate {why.metric}: {derive.timeless(why).reason}")
