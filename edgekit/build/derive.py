"""What a bundle carries besides model, contract and reference: golden set, evidence, card.

All of it is a function of the inputs: no time, no host name, no latency. Latencies differ from run
to run and would make equal builds unequal; they stand in the build record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from edgekit.build.candidates import FP32, Candidate
from edgekit.build.record import CandidateRecord
from edgekit.build.target import TargetProfile
from edgekit.contracts.contract import Contract
from edgekit.contracts.golden import INPUT_PREFIX, OUTPUT_PREFIX, Tolerance
from edgekit.contracts.reference import CONFIDENCE_PROBE, Reference
from edgekit.contracts.shadow import ABS, REL, Expectation
from edgekit.contracts.verdict import Verdict
from edgekit.registry import npz
from edgekit.registry.model import ModelVersion
from edgekit.registry.npz import Array
from edgekit.stats import bounds, compare
from edgekit.stats.bins import CONFIDENCE_BINS


def golden(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """``golden.npz``: inputs and what this variant made of them."""
    named = {f"{INPUT_PREFIX}{name}": array for name, array in inputs.items()}
    named |= {f"{OUTPUT_PREFIX}{name}": array for name, array in outputs.items()}
    return npz.to_bytes(named)


def tolerance(candidate: Candidate, outputs: Mapping[str, Array]) -> Tolerance:
    """How far a device of the same target may stray.

    Integer kernels of different CPUs round at different places, so a quantized value may land one
    step away; the absolute part grows with the outputs, as the size of that step does.
    """
    largest = [
        float(np.abs(array[np.isfinite(array)]).max(initial=1.0))
        for array in outputs.values()
        if array.dtype.kind == "f"
    ]
    scale = max([1.0, *largest])
    if candidate == FP32:
        return Tolerance(abs=1e-4 * scale, rel=1e-3, agreement_min=1.0)
    return Tolerance(abs=1e-3 * scale, rel=1e-2, agreement_min=0.97)


def expectation(
    contract: Contract, original: Mapping[str, Array], outputs: Mapping[str, Array]
) -> Expectation | None:
    """How far the variant agrees with the original on the evaluation data; None without samples.

    What a device may ask of it in the shadow of the original: the lower bound at the confidence
    that the contract asks for.
    """
    alike = compare.agreeing(contract.outputs, original, outputs, abs_max=ABS, rel_max=REL)
    if alike.size == 0:
        return None
    k, n = int(alike.sum()), int(alike.size)
    low, _ = bounds.clopper_pearson(k, n, 1.0 - contract.quality.confidence)
    return Expectation(n=n, agreement=k / n, agreement_min=low)


def timeless(verdict: Verdict) -> Verdict:
    """``verdict`` without figures that differ from run to run."""
    if not verdict.metric.startswith("latency"):
        return verdict
    return Verdict(
        metric=verdict.metric,
        outcome=verdict.outcome,
        reason="figures are in the build record: they differ from run to run",
    )


def evidence(
    model: ModelVersion,
    target: TargetProfile,
    candidates: Sequence[CandidateRecord],
    verdicts: Sequence[Verdict],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """``evidence.json``: what was tried, what was measured, with what, on which data."""
    return {
        "schema": 1,
        "model": model.name,
        "version": model.version,
        "model_digest": model.digest,
        "lineage": model.lineage,
        "assumptions": model.assumptions,
        "target": target,
        "gates": [timeless(verdict) for verdict in verdicts],
        "candidates": [
            msgspec.structs.replace(entry, latency_ms=None, pareto=False)
            for entry in candidates
            if entry.outcome != "probe"
        ],
        **facts,
    }


def card(
    model: ModelVersion,
    target: TargetProfile,
    verdicts: Sequence[Verdict],
    reference: Reference | None = None,
) -> bytes:
    """``card.md``: the model's own card, what this variant proved, and how sure it may be."""
    lines = [model.card.rstrip() or f"# {model.name} {model.version}", ""]
    lines += [f"## Variant for {target.name}", "", target.description, ""]
    lines += ["| gate | outcome | why |", "|---|---|---|"]
    for verdict in map(timeless, verdicts):
        lines.append(f"| {verdict.metric} | {verdict.outcome.value} | {verdict.reason} |")
    for name, value in sorted(model.metrics.items()):
        lines += ["", f"Registered metric {name}: {value:g}"]
    lines += _confidence(reference)
    return ("\n".join(lines) + "\n").encode()


def _confidence(reference: Reference | None) -> list[str]:
    """Rows of what was right at which confidence; none where that is not known."""
    if reference is None or reference.confident_right is None:
        return []
    lines = ["", "| confidence | evaluation samples | right |", "|---|---|---|"]
    edges = (*CONFIDENCE_BINS.edges, CONFIDENCE_BINS.edges[-1])  # the last bin is certainty
    # Nothing lies in the outer two bins: below zero, and NaN.
    counts, right_counts = reference.probes[CONFIDENCE_PROBE][1:-1], reference.confident_right[1:-1]
    for low, high, n, right in zip(edges[:-1], edges[1:], counts, right_counts, strict=True):
        if n:
            span = f"{low:.2f} to {high:.2f}" if low < high else f"{low:.2f}"
            lines.append(f"| {span} | {n} | {right / n:.1%} |")
    return lines
