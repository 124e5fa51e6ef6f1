"""Figures of this process in the Prometheus text format (version 0.0.4).

https://prometheus.io/docs/instrumenting/exposition_formats/ . They begin anew with the process;
what must be exact for ever is counted in the rings. Labels are model, version and slot, never a
client's text: the number of series stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from edgekit_runtime import process_facts
from edgekit_runtime.board import EDGES_S, OUTCOMES, Board
from edgekit_runtime.lane import Lane
from edgekit_runtime.serving import Live

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SERIES_MAX = 64  # bundles whose figures are kept; a device sees a few a month
Series = tuple[str, str, str]  # model, version, slot


class _Tally(msgspec.Struct):
    outcomes: dict[str, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(OUTCOMES.values(), 0)
    )
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(EDGES_S) + 1))
    seconds: float = 0.0

    def plus(self, board: Board) -> _Tally:
        return _Tally(
            {name: count + self.outcomes[name] for name, count in board.outcomes.items()},
            [a + b for a, b in zip(self.buckets, board.buckets, strict=True)],
            self.seconds + board.latency_s,
        )


class Metrics:
    """Belongs to the front's thread."""

    def __init__(self) -> None:
        self._past: dict[Series, _Tally] = {}  # of workers that have ended
        self._refused: dict[int, int] = {}
        self.more: Callable[[], Iterable[str]] = list  # lines about what is not inference

    def fold(self, live: Live, board: Board) -> None:
        """A worker serves no more: keep its figures."""
        series = _series(live)
        if series not in self._past and len(self._past) >= SERIES_MAX:
            self._past.pop(next(iter(self._past)))
        self._past[series] = self._past.get(series, _Tally()).plus(board)
        for status, count in board.refusals.items():
            self._refused[status] = self._refused.get(status, 0) + count

    def refuse(self, status: int) -> None:
        """One request got an error status."""
        self._refused[status] = self._refused.get(status, 0) + 1

    def render(self, lanes: Mapping[str, Lane]) -> bytes:
        """The whole page."""
        tallies, refused, in_flight = dict(self._past), dict(self._refused), 0
        for worker, live in (arm for lane in lanes.values() for arm in lane.arms):
            series, board = _series(live), worker.board
            tallies[series] = tallies.get(series, _Tally()).plus(board)
            in_flight += board.in_flight
            for status, count in board.refusals.items():
                refused[status] = refused.get(status, 0) + count
        lines = [*_inferences(tallies), *_durations(tallies)]
        lines += _metric("edgekit_http_refused_total", "counter", "Requests refused, by status.")
        lines += [
            f'edgekit_http_refused_total{{status="{status}"}} {count}'
            for status, count in sorted(refused.items())
            if count
        ]
        lines += _metric("edgekit_requests_in_flight", "gauge", "Requests not answered yet.")
        lines.append(f"edgekit_requests_in_flight {in_flight}")
        lines += _serving(lanes)
        lines += self.more()
        return ("\n".join(lines) + "\n").encode()


def _series(live: Live) -> Series:
    return live.loaded.manifest.model, live.ref.version, live.slot


def _inferences(tallies: Mapping[Series, _Tally]) -> Iterable[str]:
    yield from _metric("edgekit_inferences_total", "counter", "Inferences, by outcome.")
    for series, tally in tallies.items():
        for outcome, count in tally.outcomes.items():
            yield f'edgekit_inferences_total{{{_labels(series)},outcome="{outcome}"}} {count}'


def _durations(tallies: Mapping[Series, _Tally]) -> Iterable[str]:
    name = "edgekit_inference_duration_seconds"
    yield from _metric(name, "histogram", "Guard, preprocessing and engine.")
    for series, tally in tallies.items():
        labels, total = _labels(series), 0
        for edge, count in zip((*EDGES_S, "+Inf"), tally.buckets, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{edge}"}} {total}'
        yield f"{name}_sum{{{labels}}} {tally.seconds:.6f}"
        yield f"{name}_count{{{labels}}} {total}"


def _serving(lanes: Mapping[str, Lane]) -> Iterable[str]:
    yield from _metric("edgekit_model_ready", "gauge", "Whether the model serves.")
    sizes = [("agent", process_facts.rss_bytes())]
    for name, lane in sorted(lanes.items()):
        live = lane.serving.live
        labels = _labels((name, live.ref.version if live else "", live.slot if live else ""))
        yield f"edgekit_model_ready{{{labels}}} {int(live is not None)}"
        for number, (worker, _) in enumerate(lane.arms):
            process = f"{name} (second)" if number else name
            sizes.append((process, process_facts.rss_bytes(worker.pid)))
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
