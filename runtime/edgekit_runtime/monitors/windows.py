"""Aggregates ring records into a mergeable window. Pure: numpy in, a message out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.contracts.messages import ClockQuality, SlotRef, Window
from edgekit.contracts.reference import CLASS_PROBE, CONFIDENCE_PROBE, Side
from edgekit.stats import histogram, probes
from edgekit.stats.bins import CONFIDENCE_BINS
from edgekit_runtime.contract_facts import class_count
from edgekit_runtime.guard import Flags
from edgekit_runtime.kinds import SHADOW_KINDS, Kind
from edgekit_runtime.monitors import rules
from edgekit_runtime.ports import Loaded
from edgekit_runtime.region import AGREED, BROKE, CORRECT, Labels

OVERFLOW_SUFFIX = "-overflow"  # identity of inferences counted while a ring was full
_VIOLATION = int(Flags.INPUT_NAN | Flags.INPUT_RANGE | Flags.INPUT_AGE)


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


def labels_for(model: str, ref: SlotRef, slot: str, loaded: Loaded) -> Labels:
    """Labels of the region that counts ``ref`` while it serves in ``slot``."""
    contract, reference = loaded.contract, loaded.reference
    classes = class_count(contract)
    groups = reference.groups if reference is not None else ()
    # In the order in which `observer.Monitor` writes them.
    ordered = [group for side in Side for group in groups if group.side is side]
    digest = reference.edges_digest if reference is not None else CONFIDENCE_BINS.digest
    return Labels(
        model=model,
        digest=ref.digest,
        version=ref.version,
        slot=slot,
        release=ref.release,
        rollout=ref.rollout,
        wave=ref.wave,
        classes=classes,
        edges_digest=digest if classes or groups else "",
        probes=tuple((probe.name, probe.size) for group in ordered for probe in group.probes),
        rules=rules.labels(contract),
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
    feedback = kinds == Kind.FEEDBACK
    refused = kinds == Kind.REJECTED
    violated = np.count_nonzero(predictions & ((flags & _VIOLATION) != 0))
    shadows = np.isin(kinds, SHADOW_KINDS)
    inputs = good[predictions | refused]
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
        violations=int(violated) + int(np.count_nonzero(refused)),
        latency=tuple(int(v) for v in histogram.count(answered["latency_us"].astype(float))),
        violated=rules.count(
            labels.rules, inputs["broken"], good["cls"][refused & (good["broken"] == 0)]
        ),
        outside=_outside(labels, inputs),
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
    found: dict[str, tuple[int, ...]] = {}
    if labels.classes:
        classes = answered["cls"]
        valid = classes[(classes >= 0) & (classes < labels.classes)]
        counts = np.bincount(valid, minlength=labels.classes)
        confidence = CONFIDENCE_BINS.count(answered["confidence"].astype(float))
        found[CLASS_PROBE] = tuple(int(v) for v in counts)
        found[CONFIDENCE_PROBE] = tuple(int(v) for v in confidence)
    if answered.size:
        for column, (name, size) in enumerate(labels.probes):
            # What could not be taken (`ABSENT`) lies beyond every probe's bins.
            found[name] = probes.count(answered["bins"][:, column] & ~np.uint8(BROKE), size)
    return found


def _outside(labels: Labels, inputs: npt.NDArray[np.void]) -> dict[str, int]:
    """Elements that broke the contract, by probe."""
    some = inputs["bins"][inputs["broken"] != 0]
    counts = np.count_nonzero(some & np.uint8(BROKE), axis=0)
    found = zip(labels.probes, counts, strict=False)  # the record has room for more probes
    return {name: int(number) for (name, _), number in found if number}


def _sums(labels: Labels, answered: npt.NDArray[np.void]) -> dict[str, float]:
    if labels.classes == 0:
        return {}
    values = answered["confidence"].astype(float)
    return {"confidence": float(values[np.isfinite(values)].sum())}
