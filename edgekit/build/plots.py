"""The plots of a report as inline SVG: pure, and without anything from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from edgekit.build.candidates import Calibration
from edgekit.build.ranges import Range
from edgekit.build.record import CandidateRecord, LayerRecord

HISTOGRAMS_MAX = 24
LAYERS_MAX = 24
_WIDTH, _HEIGHT, _PAD = 640, 260, 48
_BAR = 18
_COLUMNS = 3  # of small histograms
_NAME_MAX = 34  # characters beside a bar; the ends of names tell layers apart


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


def front(entries: Sequence[CandidateRecord]) -> str:
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


def intervals(entries: Sequence[CandidateRecord]) -> str:
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


def sensitivity(probes: Sequence[CandidateRecord]) -> str:
    """Bars: drop of the metric with one layer quantized."""
    most = max(1e-9, *(entry.quality_drop or 0.0 for entry in probes))
    left, width = 220.0, _WIDTH - 320.0
    body = []
    for row, entry in enumerate(probes):
        y = 6.0 + row * _BAR
        drop = entry.quality_drop or 0.0
        size = max(0.0, drop) / most * width
        body.append(_text(left - 8, y + 11, entry.probed, "end"))
        body.append(
            f"<rect x='{left}' y='{y}' width='{size:.1f}' height='{_BAR - 5}' class='bad'/>"
        )
        words = f"{drop:+.4f}, outputs off by {entry.noise or 0.0:.2%}"
        body.append(_text(left + size + 6, y + 11, words))
    return _svg(len(probes) * _BAR + 10, body)


def errors(layers: Sequence[LayerRecord]) -> str:
    """Bars: a layer's own error on the error of its output, the first `LAYERS_MAX`."""
    return _pairs(
        [(e.name, e.error, e.own_error) for e in layers if e.error is not None],
        "bad",
        lambda whole, own: f"alone {_percent(own)}, as it is {_percent(whole)}",
    )


def times(layers: Sequence[LayerRecord]) -> str:
    """Bars: a layer's time in the variant on that in the float model, the first `LAYERS_MAX`."""
    return _pairs(
        [(e.name, e.original_us, e.us) for e in layers if e.us is not None],
        "chosen",
        lambda before, after: f"{_micro(after)}, before {_micro(before)}",
    )


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.2%}"


def _micro(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f} µs"


def _pairs(
    rows: Sequence[tuple[str, float | None, float | None]],
    kind: str,
    say: Callable[[float | None, float | None], str],
) -> str:
    shown = rows[:LAYERS_MAX]
    most = max([1e-9, *(value or 0.0 for _, *both in shown for value in both)])
    left, width = 220.0, _WIDTH - 380.0
    body = []
    for row, (name, behind, front) in enumerate(shown):
        y = 6.0 + row * _BAR
        sizes = [(value or 0.0) / most * width for value in (behind, front)]
        body.append(_text(left - 8, y + 11, _short(name), "end"))
        for size, height, colour in zip(sizes, (_BAR - 5, _BAR - 11), ("other", kind), strict=True):
            top = y + (_BAR - 5 - height) / 2
            body.append(
                f"<rect x='{left}' y='{top}' width='{size:.1f}' height='{height}' "
                f"class='{colour}'/>"
            )
        body.append(_text(left + max(sizes) + 6, y + 11, say(behind, front)))
    if len(rows) > len(shown):
        y = 6.0 + len(shown) * _BAR
        body.append(_text(left, y + 11, f"and {len(rows) - len(shown)} more"))
    return _svg((len(shown) + (len(rows) > len(shown))) * _BAR + 10, body)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_MAX else "…" + name[1 - _NAME_MAX :]


def histograms(tensors: Mapping[str, Range]) -> str:
    """Small multiples of what tensors held, with the bounds of each rule."""
    wide, high = _WIDTH / _COLUMNS, 96.0
    body = []
    for index, (name, found) in enumerate(tensors.items()):
        left, top = index % _COLUMNS * wide + 6, index // _COLUMNS * high
        body.append(f"<g><title>{escape(name)}</title>")
        body.append(_text(left, top + 12, _short(name)))
        body.append(_histogram(found, left, top + 18, wide - 12, high - 34))
        body.append(_text(left, top + high - 4, f"{found.minmax[0]:.3g}"))
        body.append(_text(left + wide - 12, top + high - 4, f"{found.minmax[1]:.3g}", "end"))
        body.append("</g>")
    return _svg(math.ceil(len(tensors) / _COLUMNS) * high + 6, body)


def _histogram(found: Range, left: float, top: float, width: float, height: float) -> str:
    """Over all that was seen: the half of zeros beyond the lower or upper end is not drawn."""
    low, high = found.minmax
    span = high - low or 1.0

    def across(value: float) -> float:
        return left + min(1.0, max(0.0, (value - low) / span)) * width

    tallest = math.log1p(max(found.histogram)) or 1.0
    step = 2 * found.peak / len(found.histogram)
    parts = []
    for index, n in enumerate(found.histogram):
        start = across(-found.peak + index * step)
        end = across(-found.peak + (index + 1) * step)
        tall = math.log1p(n) / tallest * height
        if n:
            parts.append(
                f"<rect x='{start:.1f}' y='{top + height - tall:.1f}' "
                f"width='{max(0.5, end - start):.1f}' height='{tall:.1f}' class='other'/>"
            )
    for rule in Calibration:
        marks = "".join(f"M{across(v):.1f} {top:.1f}v{height:.1f}" for v in found.by(rule))
        parts.append(f"<path class='{rule.value}' d='{marks}'/>")
    return "".join(parts)
