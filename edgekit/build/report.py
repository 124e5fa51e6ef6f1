"""One self-contained HTML page per build: no scripts, nothing fetched, readable offline. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgekit.build import plots
from edgekit.build.ranges import Ranges, disagreement
from edgekit.build.record import (
    BuildRecord,
    CandidateRecord,
    LayersRecord,
    VariantRecord,
)

REPORT_FILE = "build-report.html"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%;font-size:13px}"
    "td,th{border-bottom:1px solid #ccc;padding:3px 8px;text-align:left;vertical-align:top}"
    "svg{background:#fafafa;border:1px solid #ddd;max-width:100%}text{font:11px sans-serif}"
    ".chosen{fill:#0a7}.front{fill:#36c}.other{fill:#bbb}.bad{fill:#c33}"
    "path{stroke-width:1.5;fill:none}.minmax{stroke:#888}.entropy{stroke:#36c}"
    ".percentile{stroke:#c33;stroke-dasharray:4 2}summary{cursor:pointer}"
)


def page(record: BuildRecord, ranges: Ranges | None = None) -> bytes:
    """The report of ``record``, and of what calibration saw where it was asked."""
    title = escape(f"{record.model} {record.version}")
    parts = [f"<h1>{title}</h1>", f"<p>{escape(_facts(record))}</p>"]
    if record.warnings:
        parts.append(_list(record.warnings))
    for variant in record.variants:
        parts += _variant(variant)
    parts += _calibration(ranges)
    if record.normalised:
        parts.append("<h2>Before quantization</h2>")
        parts.append(_list(record.normalised))
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    ).encode()


def _facts(record: BuildRecord) -> str:
    tools = ", ".join(f"{name} {version}" for name, version in sorted(record.tools.items()))
    samples = ", ".join(f"{n} {split}" for split, n in sorted(record.samples.items()))
    return f"Result: {record.outcome.value}. Samples: {samples}. Made with {tools}."


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _variant(variant: VariantRecord) -> list[str]:
    parts = [f"<h2>{escape(variant.target)}: {escape(variant.candidate)}</h2>"]
    search = "complete" if variant.search.complete else f"stopped before {variant.search.next}"
    parts.append(
        f"<p>{escape(variant.metric)} {variant.quality:.4f} (original "
        f"{variant.original_quality:.4f}), {variant.size_bytes} bytes (original "
        f"{variant.original_size_bytes}), validated: {escape(variant.validated)}, "
        f"search: {escape(search)}.</p>"
    )
    if variant.nondeterministic:
        parts.append(_list(f"Not determined by the inputs: {x}" for x in variant.nondeterministic))
    parts.append("<h3>Gates</h3>")
    parts.append(_list(f"{v.metric}: {v.outcome.value}: {v.reason}" for v in variant.verdicts))
    ran = [entry for entry in variant.candidates if entry.size_bytes and entry.outcome != "probe"]
    parts += ["<h3>Drop against size, and latency where it was measured</h3>", plots.front(ran)]
    parts += ["<h3>Drop with its interval</h3>", plots.intervals(ran)]
    probes = [entry for entry in variant.candidates if entry.outcome == "probe"]
    if probes:
        parts += ["<h3>Sensitivity: each layer quantized alone</h3>", plots.sensitivity(probes)]
    parts.append(_candidates(variant.candidates))
    if variant.layers is not None:
        parts += _layers(variant.layers)
    return parts


def _layers(found: LayersRecord) -> list[str]:
    """The chosen variant layer by layer: the worst as plots, all of them as folded tables."""
    parts = ["<h3>The chosen variant layer by layer</h3>"]
    if any(layer.error is not None for layer in found.layers):
        parts.append(
            "<p>Error of each layer's output, relative to that in the float model: by itself, when "
            "it is fed what it gets there (coloured), and as it is, with what went wrong before "
            f"(grey). Samples: {found.samples}.</p>"
        )
        parts.append(plots.errors(found.ranked()))
    if any(layer.us is not None for layer in found.layers):
        parts.append(
            "<p>Time of each layer, by the engine's profiler: in the float model (grey) and in "
            "the variant (coloured). What a layer was fused into has another name.</p>"
        )
        parts.append(plots.times(sorted(found.layers, key=lambda each: -(each.us or 0.0))))
    rows = (
        (e.name, e.op, _figure(e.own_error), _figure(e.error), _us(e.original_us), _us(e.us))
        for e in found.ranked()
    )
    head = ("layer", "operator", "own error", "error", "µs in the float model", "µs")
    parts.append(_folded(f"All weight layers: {len(found.layers)}", _table(head, rows)))
    for title, nodes in (("variant", found.slowest()), ("float model", found.original_nodes)):
        if nodes:
            total = sum(node.us for node in nodes)
            told = _table(("node", "operator", "µs"), ((n.name, n.op, _us(n.us)) for n in nodes))
            summary = f"Operators of the {title}: {len(nodes)}, {total:.0f} µs a run"
            parts.append(_folded(summary, told))
    if found.unknown:
        parts += ["<p>Not known:</p>", _list(found.unknown)]
    return parts


def _calibration(ranges: Ranges | None) -> list[str]:
    """What weight layers were fed in calibration; where the rules differ most comes first."""
    seen = {n: each for n, each in (ranges.tensors if ranges else {}).items() if each.histogram}
    if ranges is None or not seen:
        return []
    order = sorted(seen, key=lambda name: (-disagreement(seen[name]), name))
    shown = {name: seen[name] for name in order[: plots.HISTOGRAMS_MAX]}
    left = len(seen) - len(shown)
    legend = (
        f"<p>Inputs of weight layers over {ranges.n} samples (heights are logarithms of counts), "
        "and the bounds that each rule sets: <svg width='12' height='10'>"
        "<path class='minmax' d='M0 5h12'/></svg> min-max, <svg width='12' height='10'>"
        "<path class='entropy' d='M0 5h12'/></svg> entropy, <svg width='12' height='10'>"
        "<path class='percentile' d='M0 5h12'/></svg> percentile. "
        f"Where they differ most comes first; {left} more are left out.</p>"
    )
    return ["<h2>Calibration</h2>", legend, plots.histograms(shown)]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def _candidates(entries: Sequence[CandidateRecord]) -> str:
    rows = (
        (
            entry.name,
            entry.outcome,
            entry.reason,
            "" if entry.quality_drop is None else f"{entry.quality_drop:+.4f}",
            "" if entry.size_bytes is None else str(entry.size_bytes),
            "" if entry.latency_ms is None else f"{entry.latency_ms:.3f}",
        )
        for entry in entries
    )
    return _table(("candidate", "outcome", "why", "drop", "bytes", "ms"), rows)
