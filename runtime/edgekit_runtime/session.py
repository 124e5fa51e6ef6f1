"""`Session`: inference with one model, counted before it returns, switched without a gap.

A switch is one assignment; a call that began before it finishes on the bundle it began with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.contracts.messages import SlotRef
from edgekit.stats.metrics import top_class
from edgekit_runtime.errors import EngineError, GuardError, NotServingError
from edgekit_runtime.guard import Flags
from edgekit_runtime.journal import Journal
from edgekit_runtime.monitors.windows import class_count
from edgekit_runtime.ports import Array, Clock
from edgekit_runtime.predictor import Predictor, scored_output
from edgekit_runtime.region import Kind, Region


@dataclass(frozen=True)
class Result:
    """The answer to one inference."""

    outputs: dict[str, Array]
    version: str
    slot: str
    flags: Flags
    request_id: str | None
    counted: bool  # False: this request id was counted before


@dataclass(frozen=True)
class Live:
    """A loaded bundle, where it is counted, and what it is called."""

    predictor: Predictor
    region: Region
    ref: SlotRef
    slot: str
    classes: int


class Session:
    """One model's serving side. Thread-safe."""

    def __init__(self, model: str, journal: Journal, clock: Clock) -> None:
        self.model = model
        self.journal = journal
        self._clock = clock
        self._live: Live | None = None

    @classmethod
    def open(
        cls,
        model: str,
        journal: Journal,
        clock: Clock,
        *,
        predictor: Predictor,
        region: Region,
        ref: SlotRef,
        slot: str,
    ) -> Session:
        """A session that serves ``predictor`` from the start."""
        session = cls(model, journal, clock)
        session.switch(predictor, region, ref, slot)
        return session

    @property
    def live(self) -> Live | None:
        """What serves now."""
        return self._live

    def switch(self, predictor: Predictor, region: Region, ref: SlotRef, slot: str) -> None:
        """Serve ``predictor`` from the next call on."""
        self._live = Live(predictor, region, ref, slot, class_count(predictor.contract))

    def stop(self) -> None:
        """Serve nothing."""
        self._live = None

    def infer(self, arrays: Mapping[str, Array], *, request_id: str | None = None) -> Result:
        """Run the model once and count it.

        Args:
            arrays: inputs by name, as the contract declares them.
            request_id: counted once, however often it is sent.

        Raises:
            NotServingError: no bundle is loaded.
            GuardError: an input breaks the contract (counted as a violation).
            EngineError: the engine failed (counted as an error).
        """
        live = self._live
        if live is None:
            raise NotServingError(
                f"model {self.model!r} is not serving", hint="see `edgekit-agent status`"
            )
        now = self._clock.wall()
        begun = time.perf_counter_ns()
        try:
            outputs, flags = live.predictor.predict(arrays)
        except GuardError:
            self.journal.record(live.region, Kind.REJECTED, None, time=now)
            raise
        except EngineError:
            self.journal.record(live.region, Kind.ERROR, request_id, time=now)
            raise
        latency_us = (time.perf_counter_ns() - begun) / 1e3
        cls, confidence = _probe(live, outputs)
        counted = self.journal.record(
            live.region,
            Kind.PREDICTION,
            request_id,
            time=now,
            latency_us=latency_us,
            cls=cls,
            confidence=confidence,
            flags=int(flags),
        )
        return Result(outputs, live.ref.version, live.slot, flags, request_id, counted)


def _probe(live: Live, outputs: Mapping[str, Array]) -> tuple[int, float]:
    """Class and confidence of the first sample; (-1, NaN) when the model does not classify.

    One record stands for one request: of a batch, its first row is looked at.
    """
    if live.classes == 0:
        return -1, math.nan
    scores = outputs[scored_output(live.predictor.contract).name]
    if scores.ndim == 0 or scores.size == 0:
        return -1, math.nan
    row = scores.reshape(-1, scores.shape[-1])[0]
    if row.dtype.kind == "f" and not all(map(math.isfinite, row.tolist())):
        return -1, math.nan
    best, confidence = top_class(row)
    return int(best), float(confidence)
