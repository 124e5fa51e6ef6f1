"""Figures of pipelines in the Prometheus text format. They go on across restarts of the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from edgekit_runtime.pipelines.counts import Figures

Metric = Callable[[str, str, str, Iterable[tuple[str, int]]], None]
_PREFIX = "edgekit_pipeline_"


def render(pipelines: Mapping[str, Figures]) -> list[str]:
    """Lines for all pipelines, by name."""
    lines: list[str] = []
    items = sorted(pipelines.items())

    def metric(name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> None:
        lines.extend([f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}"])
        lines.extend(f"{_PREFIX}{name}{{{labels}}} {value}" for labels, value in samples)

    def each(name: str, kind: str, text: str, of: str) -> None:
        samples = ((f'pipeline="{label}"', int(getattr(found, of))) for label, found in items)
        metric(name, kind, text, samples)

    each("received_total", "counter", "Items that arrived.", "received")
    each("inferred_total", "counter", "Items that were answered.", "inferred")
    each("waits_total", "counter", "Times an item waited for the model.", "waits")
    each("starts_total", "counter", "Starts of the process.", "starts")
    each("in_hand", "gauge", "Items that arrived and are not decided.", "in_hand")
    each("up", "gauge", "Whether the process runs.", "alive")
    for name, text in (("refused", "Items that cannot be used."), ("dropped", "Items given up.")):
        metric(
            f"{name}_total",
            "counter",
            text,
            (
                (f'pipeline="{label}",reason="{reason}"', count)
                for label, found in items
                for reason, count in getattr(found, name).items()
            ),
        )
    _sinks(items, metric)
    return lines


def _sinks(items: Iterable[tuple[str, Figures]], metric: Metric) -> None:
    sinks = [
        (f'pipeline="{label}",sink="{sink.name}"', sink)
        for label, found in items
        for sink in found.sinks
    ]
    metric(
        "sink_delivered_total",
        "counter",
        "Answers a sink has taken.",
        ((labels, sink.delivered) for labels, sink in sinks),
    )
    metric(
        "sink_failed_total",
        "counter",
        "Answers a sink refused.",
        ((labels, sink.failed) for labels, sink in sinks),
    )
    metric(
        "sink_retries_total",
        "counter",
        "Tries that failed.",
        ((labels, sink.retries) for labels, sink in sinks),
    )
    metric(
        "sink_dropped_total",
        "counter",
        "Answers a sink had no room for.",
        (
            (f'{labels},reason="{reason}"', count)
            for labels, sink in sinks
            for reason, count in sink.dropped.items()
        ),
    )
