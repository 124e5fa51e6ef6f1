"""Inference in this process: run a `Predictor`, see what is to be counted, count it.

Workers use `observe` and leave the counting to the agent; a process that hosts the model itself
uses `infer`, which counts before it returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.contracts.errors import EdgekitError
from edgekit.stats.metrics import top_of_row
from edgekit_runtime.errors import EngineError, GuardError, NotServingError
from edgekit_runtime.guard import Flags
from edgekit_runtime.journal import hash_id
from edgekit_runtime.ports import Array
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.region import Kind
from edgekit_runtime.serving import Observation, Serving


@dataclass(frozen=True)
class Result:
    """The answer to one inference."""

    outputs: dict[str, Array]
    version: str
    slot: str
    flags: Flags
    request_id: str | None
    counted: bool  # False: this request id was counted before


def observe(
    predictor: Predictor, arrays: Mapping[str, Array], request: int
) -> tuple[Observation, dict[str, Array] | EdgekitError]:
    """Run once; what to count, and the outputs or the failure (an input refused, an engine error).

    Args:
        predictor: the loaded bundle.
        arrays: inputs by name, as the contract declares them.
        request: hash of the request id, 0 when there is none.
    """
    begun = time.perf_counter_ns()
    try:
        outputs, flags = predictor.predict(arrays)
    except GuardError as exc:
        return Observation(Kind.REJECTED), exc  # not an inference: its id stays free
    except EngineError as exc:
        return Observation(Kind.ERROR, request), exc
    latency_us = (time.perf_counter_ns() - begun) / 1e3
    cls, confidence = _probe(predictor, outputs)
    seen = Observation(Kind.PREDICTION, request, latency_us, cls, confidence, int(flags))
    return seen, outputs


def infer(
    serving: Serving, arrays: Mapping[str, Array], *, request_id: str | None = None
) -> Result:
    """Run the model of ``serving`` once, in this process, and count it.

    Args:
        serving: holds a `Predictor`.
        arrays: inputs by name, as the contract declares them.
        request_id: counted once, however often it is sent.

    Raises:
        NotServingError: no bundle is loaded in this process.
        GuardError: an input breaks the contract (counted as a violation).
        EngineError: the engine failed (counted as an error).
    """
    live = serving.live
    if live is None or not isinstance(live.loaded, Predictor):
        raise NotServingError(
            f"model {serving.model!r} is not loaded here", hint="see `edgekit-agent status`"
        )
    seen, answer = observe(live.loaded, arrays, hash_id(request_id))
    counted = serving.count(live, seen)
    if isinstance(answer, EdgekitError):
        raise answer
    return Result(answer, live.ref.version, live.slot, Flags(seen.flags), request_id, counted)


def _probe(predictor: Predictor, outputs: Mapping[str, Array]) -> tuple[int, float]:
    """Class and confidence of the first sample; (-1, NaN) when the model does not classify.

    One record stands for one request: of a batch, its first row is looked at.
    """
    if predictor.scored is None:
        return -1, math.nan
    scores = outputs[predictor.scored]
    if scores.ndim == 0 or scores.size == 0:
        return -1, math.nan
    return top_of_row(scores.reshape(-1, scores.shape[-1])[0])
