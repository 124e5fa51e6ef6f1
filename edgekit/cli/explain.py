"""``edgekit explain``: why a build chose what it chose, layer by layer where it looked that far."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts import codec

if TYPE_CHECKING:
    from edgekit.build.record import CandidateRecord, LayersRecord, VariantRecord

_ROWS_MAX = 12  # of layers and of operators: more scroll the decision out of sight


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
    lines += [f"not determined by the inputs: {each}" for each in variant.nondeterministic]
    lines += [f"gate {v.metric} {v.outcome.value}: {v.reason}" for v in variant.verdicts]
    shipping = [entry for entry in variant.candidates if entry.outcome != "probe"]
    header = ["CANDIDATE", "DROP", "NOISE", "SIZE", "FRONT", "OUTCOME", "WHY"]
    lines += ["", output.table(header, [_row(entry) for entry in shipping])]
    lines += [f"{e.name}: 7-bit weights in {', '.join(e.reduced)}" for e in shipping if e.reduced]
    probes = [entry for entry in variant.candidates if entry.outcome == "probe"]
    if probes:
        probes.sort(key=lambda entry: (-(entry.quality_drop or 0.0), -(entry.noise or 0.0)))
        rows = [
            [e.probed, f"{e.quality_drop or 0.0:+.4f}", f"{e.noise or 0.0:.4f}"] for e in probes
        ]
        lines += ["", output.table(["LAYER QUANTIZED ALONE", "DROP", "NOISE"], rows)]
    else:
        lines += ["", "no layer was measured alone: nothing was worth a repair, or time ran out"]
    if variant.layers is not None:
        lines += _layers(variant.layers)
    return "\n".join(lines)


def _layers(found: LayersRecord) -> list[str]:
    """Errors and times of the chosen variant's layers, and its slowest operators."""
    columns = {
        "OWN ERROR": [_figure(each.own_error, ".4f") for each in found.ranked()],
        "ERROR": [_figure(each.error, ".4f") for each in found.ranked()],
        "US BEFORE": [_figure(each.original_us, ".1f") for each in found.ranked()],
        "US": [_figure(each.us, ".1f") for each in found.ranked()],
    }
    known = {name: cells for name, cells in columns.items() if set(cells) - {"-"}}
    lines = []
    if known:
        heads = [[each.name, each.op] for each in found.ranked()]
        rows = [[*head, *cells] for head, *cells in zip(heads, *known.values(), strict=True)]
        lines += ["", *_top(["LAYER", "OPERATOR", *known], rows)]
    if found.nodes:
        total = sum(node.us for node in found.nodes)
        before = sum(node.us for node in found.original_nodes)
        rows = [
            [each.name, each.op, f"{each.us:.1f}", f"{each.us / total:.0%}"]
            for each in found.slowest()
        ]
        lines += ["", *_top(["NODE OF THE ENGINE", "OPERATOR", "US", "SHARE"], rows)]
        lines.append(f"all nodes: {total:.0f} us a run, of the float model: {before:.0f} us")
    return lines + [f"not known: {why}" for why in found.unknown]


def _top(header: list[str], rows: list[list[str]]) -> list[str]:
    more = len(rows) - _ROWS_MAX
    told = [f"and {more} more: --json or the report has all"] if more > 0 else []
    return [output.table(header, rows[:_ROWS_MAX]), *told]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


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
