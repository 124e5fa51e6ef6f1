"""Figures of this process in the Prometheus text format (version 0.0.4).

https://prometheus.io/docs/instrumenting/exposition_formats/ . They begin anew with the process;
what must be exact for ever is counted in the rings. Labels are model, version and slot, never a
client's text: the number of series stays bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgekit_runtime import process_facts
from edgekit_runtime.region import Kind
from edgekit_runtime.serving import Observation, Serving
from edgekit_runtime.worker_model import WorkerModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SERIES_MAX = 64  # bundles whose figures are kept; a device sees a few a month
# Seconds. From a small model on a fast core to a large one on a slow board.
EDGES_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
_OUTCOMES = {Kind.PREDICTION: "answered", Kind.ERROR: "error", Kind.REJECTED: "rejected"}
Series = tuple[str, str, str]  # model, version, slot


@dataclass
class _Tally:
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_OUTCOMES.values(), 0))
    buckets: list[int] = field(default_factory=lambda: [0] * (len(EDGES_S) + 1))
    seconds: float = 0.0


class Metrics:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._tallies: dict[Series, _Tally] = {}
        self._refused: dict[int, int] = {}

    def observe(self, series: Series, seen: Observation) -> None:
        """One request was answered."""
        tally = self._tallies.get(series)
        if tally is None:
            if len(self._tallies) >= SERIES_MAX:
                self._tallies.pop(next(iter(self._tallies)))
            tally = self._tallies[series] = _Tally()
        if seen.kind in _OUTCOMES:
            tally.outcomes[_OUTCOMES[seen.kind]] += 1
        if seen.kind is Kind.PREDICTION:
            seconds = seen.latency_us / 1e6
            tally.buckets[bisect_left(EDGES_S, seconds)] += 1
            tally.seconds += seconds

    def refuse(self, status: int) -> None:
        """One request got an error status."""
        self._refused[status] = self._refused.get(status, 0) + 1

    def render(self, servings: Mapping[str, Serving], in_flight: int) -> bytes:
        """The whole page."""
        lines = [*self._inferences(), *self._durations()]
        lines += _metric("edgekit_http_refused_total", "counter", "Requests refused, by status.")
        lines += [
            f'edgekit_http_refused_total{{status="{status}"}} {count}'
            for status, count in sorted(self._refused.items())
        ]
        lines += _metric("edgekit_requests_in_flight", "gauge", "Requests not answered yet.")
        lines.append(f"edgekit_requests_in_flight {in_flight}")
        lines += _serving(servings)
        return ("\n".join(lines) + "\n").encode()

    def _inferences(self) -> Iterable[str]:
        yield from _metric("edgekit_inferences_total", "counter", "Inferences, by outcome.")
        for series, tally in self._tallies.items():
            for outcome, count in tally.outcomes.items():
                yield f'edgekit_inferences_total{{{_labels(series)},outcome="{outcome}"}} {count}'

    def _durations(self) -> Iterable[str]:
        name = "edgekit_inference_duration_seconds"
        yield from _metric(name, "histogram", "Guard, preprocessing and engine.")
        for series, tally in self._tallies.items():
            labels, total = _labels(series), 0
            for edge, count in zip((*EDGES_S, "+Inf"), tally.buckets, strict=True):
                total += count
                yield f'{name}_bucket{{{labels},le="{edge}"}} {total}'
            yield f"{name}_sum{{{labels}}} {tally.seconds:.6f}"
            yield f"{name}_count{{{labels}}} {total}"


def _serving(servings: Mapping[str, Serving]) -> Iterable[str]:
    yield from _metric("edgekit_model_ready", "gauge", "Whether the model serves.")
    sizes = [("agent", process_facts.rss_bytes())]
    for name, serving in sorted(servings.items()):
        live = serving.live
        labels = _labels((name, live.ref.version if live else "", live.slot if live else ""))
        yield f"edgekit_model_ready{{{labels}}} {int(live is not None)}"
        if live is not None and isinstance(live.loaded, WorkerModel):
            sizes.append((name, process_facts.rss_bytes(live.loaded.pid)))
    yield from _metric("edgekit_process_resident_bytes", "gauge", "Memory of agent and workers.")
    for name, size in sizes:
        if size is not None:
            yield f'edgekit_process_resident_bytes{{process="{_escape(name)}"}} {size}'


def _metric(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _labels(series: Series) -> str:
    pairs = zip(("model", "version", "slot"), series, strict=True)
    return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
