"""``edgekit explain``: why a build chose what it chose, layer by layer where it looked that far."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts import codec

if TYPE_CHECKING:
    from edgekit.build.record import CandidateRecord, VariantRecord


def explain(
    record: Annotated[
        Path, typer.Argument(help="A build-record.json, or the folder `edgekit build` wrote.")
    ] = Path("build-out"),
    *,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Only this target.")] = None,
    json: JsonOption = False,
) -> None:
    """Explain a build: gates, candidates with their reasons, and what each layer costs."""
    with output.needs("build"):
        from edgekit.build.record import RECORD_FILE, BuildRecord
        from edgekit.contracts.errors import UsageError
    path = record / RECORD_FILE if record.is_dir() else record
    found = codec.read(BuildRecord, path)
    variants = [each for each in found.variants if target in (None, each.target)]
    if not variants:
        known = ", ".join(each.target for each in found.variants)
        raise UsageError(f"{path}: no target {target!r}", hint=f"it has: {known}")
    if json:
        output.emit_json(variants)
        return
    warnings = [f"warning: {warning}" for warning in found.warnings]
    output.emit("\n\n".join([*warnings, *(describe(variant) for variant in variants)]))


def describe(variant: VariantRecord) -> str:
    """One target's decision, in words and tables."""
    search = variant.search
    state = "complete" if search.complete else f"ran out of time before {search.next}"
    lines = [
        f"{variant.target}: {variant.candidate} ({variant.precision}), {variant.outcome.value}",
        f"search {state}, {search.tried} candidates beyond the first round",
    ]
    lines += [f"gate {v.metric} {v.outcome.value}: {v.reason}" for v in variant.verdicts]
    shipping = [entry for entry in variant.candidates if entry.outcome != "probe"]
    header = ["CANDIDATE", "DROP", "NOISE", "SIZE", "FRONT", "OUTCOME", "WHY"]
    lines += ["", output.table(header, [_row(entry) for entry in shipping])]
    lines += [f"{e.name}: 7-bit weights in {', '.join(e.reduced)}" for e in shipping if e.reduced]
    probes = [entry for entry in variant.candidates if entry.outcome == "probe"]
    if probes:
        probes.sort(key=lambda entry: (-(entry.quality_drop or 0.0), -(entry.noise or 0.0)))
        rows = [
            [_layer(e), f"{e.quality_drop or 0.0:+.4f}", f"{e.noise or 0.0:.4f}"] for e in probes
        ]
        lines += ["", output.table(["LAYER QUANTIZED ALONE", "DROP", "NOISE"], rows)]
    else:
        lines += ["", "no layer was measured alone: nothing was worth a repair, or time ran out"]
    return "\n".join(lines)


def _layer(entry: CandidateRecord) -> str:
    from edgekit.build.report import probed_layer

    return probed_layer(entry)


def _row(entry: CandidateRecord) -> list[str]:
    ran = entry.quality_drop is not None and entry.noise is not None
    return [
        entry.name,
        f"{entry.quality_drop:+.4f}" if ran else "-",
        f"{entry.noise:.4f}" if ran else "-",
        f"{entry.size_bytes}" if entry.size_bytes else "-",
        "yes" if entry.pareto else "",
        entry.outcome,
        entry.reason,
    ]
