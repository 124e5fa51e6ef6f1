"""A loaded model and where its answers are counted: what every process that hosts a model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import NamedTuple

import msgspec

from edgekit.contracts.composition import Link
from edgekit.contracts.errors import EdgekitError
from edgekit_runtime import guard
from edgekit_runtime.errors import EngineError, GuardError, is_memory
from edgekit_runtime.guard import Flags
from edgekit_runtime.journal import Journal, hash_id
from edgekit_runtime.kinds import Kind
from edgekit_runtime.monitors import rules
from edgekit_runtime.monitors.observer import Monitor
from edgekit_runtime.ports import Array, Clock
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.region import Region, Sight

_PREDICTION, _ERROR, _REJECTED = Kind.PREDICTION, Kind.ERROR, Kind.REJECTED
_NONE, _NOTHING = Flags.NONE, Sight()


class Result(msgspec.Struct, frozen=True):
    """The answer to one inference."""

    outputs: dict[str, Array]
    version: str
    slot: str
    flags: Flags
    request_id: str | None
    counted: bool  # False: this request id was counted before
    latency_s: float = 0.0  # of the model alone, guard and preprocessing included
    sources: Mapping[str, str] = {}  # versions of the models that fed it


class Seen(NamedTuple):
    """One call: what it was counted as, its outputs or why there are none."""

    kind: Kind
    outputs: dict[str, Array]
    error: EdgekitError | None
    flags: Flags
    latency_us: float
    counted: bool


class Place(msgspec.Struct, frozen=True):
    """Where a session counts, and what its answers say."""

    version: str
    slot: str
    region: Region
    journal: Journal
    links: tuple[Link, ...] = ()

    @classmethod
    def of(
        cls, version: str, slot: str, regions: Sequence[Region], links: tuple[Link, ...] = ()
    ) -> Place:
        """Count in the first of ``regions``; the others, newest first, hold earlier request ids."""
        journal = Journal()
        for region in reversed(regions):  # a journal's newest is its last
            journal.add(region)
        return cls(version, slot, regions[0], journal, links)


class Session:
    """One model in this process. One call at a time."""

    def __init__(self, predictor: Predictor, place: Place, clock: Clock) -> None:
        self.predictor = predictor
        self.place = place
        self._clock = clock
        self._monitor = Monitor(predictor.contract, predictor.reference, predictor.scored)

    def infer(
        self,
        arrays: Mapping[str, Array],
        *,
        request_id: str | None = None,
        taken_at: float | None = None,
        rows: bool = False,
        also: int = 0,
    ) -> Result:
        """Run the model once and count it.

        Args:
            arrays: inputs by name, as the contract declares them.
            request_id: counted once, however often it is sent.
            taken_at: when the inputs were measured, Unix seconds; for contracts that limit their
                age.
            rows: see `call`.
            also: see `call`.

        Raises:
            GuardError: an input breaks the contract (counted as a violation).
            EngineError: the engine failed (counted as an error).
            MemoryError: an allocation failed; not counted.
        """
        seen = self.call(arrays, hash_id(request_id), taken_at, rows=rows, also=also)
        if seen.error is not None:
            raise seen.error
        place = self.place
        return Result(
            seen.outputs,
            place.version,
            place.slot,
            seen.flags,
            request_id,
            seen.counted,
            seen.latency_us / 1e6,
        )

    def call(
        self,
        arrays: Mapping[str, Array],
        request: int,
        taken_at: float | None = None,
        *,
        rows: bool = False,
        also: int = 0,
    ) -> Seen:
        """Like `infer`, for hosts: failures are in the answer.

        Args:
            arrays: inputs by name.
            request: a `hash_id`.
            taken_at: see `infer`.
            rows: take any number of rows, also where the model has a fixed batch size.
            also: flags that the host has a reason to set.

        Raises:
            MemoryError: see `infer`.
        """
        old, monitor = 0, self._monitor
        begun = perf_counter_ns()
        try:
            if monitor.dated:
                age_s = None if taken_at is None else self._clock.wall() - taken_at
                old = rules.age_bits(self.predictor.contract, age_s)
                guard.check_age(self.predictor.contract, age_s)
            predict = self.predictor.predict_rows if rows else self.predictor.predict
            outputs, flags = predict(arrays)
            flags |= also
            if old:
                flags |= Flags.INPUT_AGE
        except GuardError as exc:
            # Not an inference: its id stays free.
            self._record(_REJECTED, 0, 0.0, monitor.refused(arrays, exc, old))
            return Seen(Kind.REJECTED, {}, exc, Flags.NONE, 0.0, counted=False)
        except EngineError as exc:
            if is_memory(exc):
                raise MemoryError(exc.message) from exc
            counted = self._record(_ERROR, request, 0.0, _NOTHING)
            return Seen(Kind.ERROR, {}, exc, Flags.NONE, 0.0, counted)
        latency_us = (perf_counter_ns() - begun) / 1e3
        plain = 0 if flags is _NONE else int(flags)
        sight = monitor.observe(arrays, outputs, plain, old)
        counted = self._record(_PREDICTION, request, latency_us, sight, plain)
        return Seen(Kind.PREDICTION, outputs, None, flags, latency_us, counted)

    def feedback(self, request_id: str, label: int) -> bool | None:
        """Join a true label with its prediction. See `Journal.feedback`."""
        return self.place.journal.feedback(request_id, label, time=self._clock.wall())

    def _record(
        self, kind: Kind, request: int, latency_us: float, sight: Sight, flags: int = 0
    ) -> bool:
        place = self.place
        return place.journal.record(
            place.region, kind, request, self._clock.wall(), latency_us, sight, flags
        )
