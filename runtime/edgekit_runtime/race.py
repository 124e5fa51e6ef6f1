"""``python -m edgekit_runtime.race``: several bundles timed against each other, in turns.

Medians of separate processes wobble by several per cent: other work, clocks, page placement. Here
each round times every bundle once, in a new order, so that whatever disturbs disturbs all alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.evaluation import Latency
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, console, golden, predictor
from edgekit_runtime.ports import Array
from edgekit_runtime.predictor import Predictor

BLOCK_S = 0.02  # of one bundle in one round: shorter blocks time cold caches
BLOCK_RUNS_MIN = 3
WARM_UP_RUNS = 10


def race(
    layout: Path, references: Sequence[str], data: Mapping[str, Array], *, rounds: int, threads: int
) -> list[Latency]:
    """Latency of each bundle, in the order of ``references``.

    Raises:
        EdgekitError: a bundle, its engine or the data is not usable.
    """
    reader = LayoutReader(layout)
    models = [
        predictor.load(bundles.open_bundle(reader, reader.resolve(name)), threads=threads)
        for name in references
    ]
    feeds = [
        [model.single(data, index) for index in range(min(16, len(next(iter(data.values())))))]
        for model in models
    ]
    blocks = [_block_runs(model, fed) for model, fed in zip(models, feeds, strict=True)]
    times: list[list[float]] = [[] for _ in models]
    order = list(range(len(models)))
    shuffler = random.Random(1)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for index in order:
            times[index].append(_block(models[index], feeds[index], blocks[index]))
    return [
        Latency(
            p50_ms=float(np.median(found)),
            p95_ms=float(np.quantile(found, 0.95)),
            runs=rounds * runs,
            threads=threads,
        )
        for found, runs in zip(times, blocks, strict=True)
    ]


def _block_runs(model: Predictor, feeds: Sequence[Mapping[str, Array]]) -> int:
    for index in range(WARM_UP_RUNS):
        model.predict(feeds[index % len(feeds)])
    return max(BLOCK_RUNS_MIN, int(BLOCK_S * 1e3 / _block(model, feeds, WARM_UP_RUNS)))


def _block(model: Predictor, feeds: Sequence[Mapping[str, Array]], runs: int) -> float:
    """Median milliseconds of ``runs`` inferences."""
    taken = np.empty(runs)
    for index in range(runs):
        begun = time.perf_counter_ns()
        model.predict(feeds[index % len(feeds)])
        taken[index] = (time.perf_counter_ns() - begun) / 1e6
    return float(np.median(taken))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    layout: Annotated[Path, typer.Argument(help="OCI layout folder.")],
    references: Annotated[list[str], typer.Argument(help="Tags or digests of bundles in it.")],
    *,
    data: Annotated[Path, typer.Option(help="Arrays by input name (.npz).")],
    rounds: Annotated[int, typer.Option(min=1, help="How often each bundle is timed.")] = 25,
    threads: Annotated[int, typer.Option(min=1, help="Threads an engine may use.")] = 1,
) -> None:
    """Time bundles in turns and print their latencies as JSON, in the order they were given."""
    if len(set(references)) != len(references):
        raise BadInputError("a bundle is given twice", hint="give each only once")
    arrays = golden.load_npz(data, str(data))
    console.emit_json(race(layout, references, arrays, rounds=rounds, threads=threads))


if __name__ == "__main__":
    console.run(app)
