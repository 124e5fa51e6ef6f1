"""One self-contained HTML page per build: no scripts, nothing fetched, readable offline. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgekit.build.record import BuildRecord, CandidateRecord, VariantRecord

REPORT_FILE = "build-report.html"
_WIDTH, _HEIGHT, _PAD = 640, 260, 48
_BAR = 18
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%;font-size:13px}"
    "td,th{border-bottom:1px solid #ccc;padding:3px 8px;text-align:left;vertical-align:top}"
    "svg{background:#fafafa;border:1px solid #ddd;max-width:100%}text{font:11px sans-serif}"
    ".chosen{fill:#0a7}.front{fill:#36c}.other{fill:#bbb}.bad{fill:#c33}"
)


def probed_layer(entry: CandidateRecord) -> str:
    """The layer a probe quantized alone."""
    return entry.name.partition("~only(")[2].removesuffix(")")


def page(record: BuildRecord) -> bytes:
    """The report of ``record``."""
    title = escape(f"{record.model} {record.version}")
    parts = [f"<h1>{title}</h1>", f"<p>{escape(_facts(record))}</p>"]
    if record.warnings:
        parts.append(_list(record.warnings))
    for variant in record.variants:
        parts += _variant(variant)
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
    parts.append("<h3>Gates</h3>")
    parts.append(_list(f"{v.metric}: {v.outcome.value}: {v.reason}" for v in variant.verdicts))
    ran = [entry for entry in variant.candidates if entry.size_bytes and entry.outcome != "probe"]
    parts += ["<h3>Drop against size, and latency where it was measured</h3>", _front(ran)]
    parts += ["<h3>Drop with its interval</h3>", _intervals(ran)]
    probes = [entry for entry in variant.candidates if entry.outcome == "probe"]
    if probes:
        parts += ["<h3>Sensitivity: each layer quantized alone</h3>", _sensitivity(probes)]
    parts.append(_table(variant.candidates))
    return parts


def _svg(height: float, body: Iterable[str]) -> str:
    return (
        f"<svg viewBox='0 0 {_WIDTH} {height:.0f}' width='{_WIDTH}' role='img'>"
        + "".join(body)
        + "</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(words)}</text>"


def _scale(values: Sequence[float], low: float, high: float) -> list[float]:
    least, most = min(values), max(values)
    span = most - least or 1.0
    return [low + (value - least) / span * (high - low) for value in values]


def _kind(entry: CandidateRecord) -> str:
    if entry.outcome == "chosen":
        return "chosen"
    if entry.outcome == "gate_failed":
        return "bad"
    return "front" if entry.pareto else "other"


def _front(entries: Sequence[CandidateRecord]) -> str:
    """Candidates by drop (up is worse) and cost."""
    if not entries:
        return ""
    timed = all(entry.latency_ms is not None for entry in entries)
    costs = [float((e.latency_ms if timed else e.size_bytes) or 0) for e in entries]
    drops = [entry.quality_drop or 0.0 for entry in entries]
    xs = _scale(costs, _PAD, _WIDTH - 3 * _PAD)
    ys = _scale(drops, _HEIGHT - _PAD, _PAD / 2)
    body = [
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' class='{_kind(entry)}'>"
        f"<title>{escape(entry.name)}: {cost:g}, {drop:+.4f}</title></circle>"
        + (_text(x + 7, y + 4, entry.name) if entry.pareto or entry.outcome == "chosen" else "")
        for x, y, entry, cost, drop in zip(xs, ys, entries, costs, drops, strict=True)
    ]
    unit = "latency, ms" if timed else "size, bytes"
    body.append(_text(_PAD, _HEIGHT - 12, f"{unit}: {min(costs):g} to {max(costs):g}"))
    body.append(_text(4, 14, f"drop: {min(drops):+.4f} to {max(drops):+.4f}"))
    return _svg(_HEIGHT, body)


def _intervals(entries: Sequence[CandidateRecord]) -> str:
    """Estimate and upper bound of each candidate's drop on the tuning data."""
    both = ((entry.quality_drop, entry.quality_drop_upper) for entry in entries)
    values = [value for pair in both for value in pair if value is not None]
    if not values:
        return ""
    least, most = min(0.0, *values), max(values)
    span = most - least or 1.0
    left, width = 220.0, _WIDTH - 240.0
    body = []
    for row, entry in enumerate(entries):
        y = 14.0 + row * _BAR
        at = [
            left + ((value or 0.0) - least) / span * width
            for value in (entry.quality_drop, entry.quality_drop_upper)
        ]
        body.append(_text(left - 8, y + 4, entry.name, "end"))
        body.append(f"<line x1='{at[0]:.1f}' x2='{at[1]:.1f}' y1='{y}' y2='{y}' stroke='#888'/>")
        body.append(f"<circle cx='{at[0]:.1f}' cy='{y}' r='4' class='{_kind(entry)}'/>")
    return _svg(len(entries) * _BAR + 14, body)


def _sensitivity(probes: Sequence[CandidateRecord]) -> str:
    """Bars: drop of the metric with one layer quantized."""
    most = max(1e-9, *(entry.quality_drop or 0.0 for entry in probes))
    left, width = 220.0, _WIDTH - 320.0
    body = []
    for row, entry in enumerate(probes):
        y = 6.0 + row * _BAR
        drop = entry.quality_drop or 0.0
        size = max(0.0, drop) / most * width
        body.append(_text(left - 8, y + 11, probed_layer(entry), "end"))
        body.append(
            f"<rect x='{left}' y='{y}' width='{size:.1f}' height='{_BAR - 5}' class='bad'/>"
        )
        words = f"{drop:+.4f}, outputs off by {entry.noise or 0.0:.2%}"
        body.append(_text(left + size + 6, y + 11, words))
    return _svg(len(probes) * _BAR + 10, body)


def _table(entries: Sequence[CandidateRecord]) -> str:
    rows = [
        "<tr>"
        + "".join(
            f"<td>{escape(cell)}</td>"
            for cell in (
                entry.name,
                entry.outcome,
                entry.reason,
                "" if entry.quality_drop is None else f"{entry.quality_drop:+.4f}",
                "" if entry.size_bytes is None else str(entry.size_bytes),
                "" if entry.latency_ms is None else f"{entry.latency_ms:.3f}",
            )
        )
        + "</tr>"
        for entry in entries
    ]
    head = "".join(
        f"<th>{name}</th>" for name in ("candidate", "outcome", "why", "drop", "bytes", "ms")
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
