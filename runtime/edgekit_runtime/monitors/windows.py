"""Aggregates ring records into a mergeable window. Pure: numpy in, a message out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.contracts.contract import Contract
from edgekit.contracts.messages import ClockQuality, SlotRef, Window
from edgekit.stats import histogram
from edgekit.stats.bins import CONFIDENCE_BINS
from edgekit_runtime.contract_facts import class_count
from edgekit_runtime.guard import Flags
from edgekit_runtime.region import AGREED, CORRECT, SHADOW_KINDS, Kind, Labels

OVERFLOW_SUFFIX = "-overflow"  # identity of inferences counted while a ring was full
_VIOLATION = int(Flags.INPUT_NAN | Flags.INPUT_RANGE)


def shadow_labels(model: str, ref: SlotRef, slot: str) -> Labels:
    """Labels of the region that counts what ``ref``, a candidate, makes of live inputs."""
    return Labels(
        model=model,
        digest=ref.digest,
        version=ref.version,
        slot=slot,
        release=ref.release,
        rollout=ref.rollout,
        wave=ref.wave,
        shadow=True,
    )


def labels_for(model: str, ref: SlotRef, slot: str, contract: Contract) -> Labels:
    """Labels of the region that counts ``ref`` while it serves in ``slot``."""
    classes = class_count(contract)
    return Labels(
        model=model,
        digest=ref.digest,
        version=ref.version,
        slot=slot,
        release=ref.release,
        rollout=ref.rollout,
        wave=ref.wave,
        classes=classes,
        edges_digest=CONFIDENCE_BINS.digest if classes else "",
    )


def aggregate(
    labels: Labels,
    region: str,
    first: int,
    records: npt.NDArray[np.void],
    intact: npt.NDArray[np.bool_],
    *,
    now: float,
    clock: ClockQuality,
) -> Window:
    """The window of ``records``, which lie at positions ``[first, first + len(records))``.

    Records that are not intact (lost to a power cut) are counted in ``n`` and nowhere else; of a
    candidate's shadow they are not inferences, and not counted at all.
    """
    lost = 0 if labels.shadow else int(np.count_nonzero(~intact))
    good = records[intact]
    kinds, flags = good["kind"], good["flags"]
    predictions = kinds == Kind.PREDICTION
    errors = int(np.count_nonzero(kinds == Kind.ERROR))
    rejected = int(np.count_nonzero(kinds == Kind.REJECTED))
    feedback = kinds == Kind.FEEDBACK
    violated = np.count_nonzero(predictions & ((flags & _VIOLATION) != 0))
    shadows = np.isin(kinds, SHADOW_KINDS)
    answered = good[predictions | (kinds == Kind.SHADOW)]
    return Window(
        model=labels.model,
        digest=labels.digest,
        slot=labels.slot,
        release=labels.release,
        rollout=labels.rollout,
        wave=labels.wave,
        edges_digest=labels.edges_digest,
        start=float(good["time"].min()) if good.size else now,
        end=now,
        n=int(np.count_nonzero(predictions)) + errors + lost,
        errors=errors,
        nan=int(np.count_nonzero((predictions | shadows) & ((flags & Flags.OUTPUT_NAN) != 0))),
        violations=int(violated) + rejected,
        latency=tuple(int(v) for v in histogram.count(answered["latency_us"].astype(float))),
        probes=_probes(labels, answered),
        sums=_sums(labels, answered),
        labelled=int(np.count_nonzero(feedback)),
        correct=int(np.count_nonzero(feedback & ((flags & CORRECT) != 0))),
        shadowed=int(np.count_nonzero(shadows)),
        agreed=int(np.count_nonzero(shadows & ((flags & AGREED) != 0))),
        shadow_errors=int(np.count_nonzero(kinds == Kind.SHADOW_ERROR)),
        shadow_dropped=int(good["cls"][shadows].clip(min=0).sum()),
        clock=clock,
        region=region,
        first=first,
        last=first + len(records),
    )


def overflowed(
    labels: Labels, region: str, first: int, last: int, *, now: float, clock: ClockQuality
) -> Window:
    """The window of inferences of which only the number is known."""
    return Window(
        model=labels.model,
        digest=labels.digest,
        slot=labels.slot,
        release=labels.release,
        rollout=labels.rollout,
        wave=labels.wave,
        start=now,
        end=now,
        n=last - first,
        clock=clock,
        region=region + OVERFLOW_SUFFIX,
        first=first,
        last=last,
    )


def _probes(labels: Labels, answered: npt.NDArray[np.void]) -> dict[str, tuple[int, ...]]:
    if labels.classes == 0:
        return {}
    classes = answered["cls"]
    valid = classes[(classes >= 0) & (classes < labels.classes)]
    counts = np.bincount(valid, minlength=labels.classes)
    confidence = CONFIDENCE_BINS.count(answered["confidence"].astype(float))
    return {
        "class": tuple(int(v) for v in counts),
        "confidence": tuple(int(v) for v in confidence),
    }


def _sums(labels: Labels, answered: npt.NDArray[np.void]) -> dict[str, float]:
    if labels.classes == 0:
        return {}
    values = answered["confidence"].astype(float)
    return {"confidence": float(values[np.isfinite(values)].sum())}
