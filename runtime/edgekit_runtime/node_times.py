"""``python -m edgekit_runtime.node_times``: how long each operator of some bundles takes.

The engine's own profiler says it, on the thread and with the options that devices use. Profiling
costs time of its own, so the parts add up to more than a latency: they tell where it goes. Bundles
run in turns, so that what disturbs one disturbs all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from edgekit.contracts.evaluation import NodeTime
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, console, engines, golden, predictor
from edgekit_runtime.bundles import Bundle
from edgekit_runtime.ports import Array, Profiled
from edgekit_runtime.predictor import Predictor

BUDGET_S = 1.0  # for one bundle, as far as the least number of runs allows
WARM_UP_RUNS = 3
RUNS_MIN, RUNS_MAX = 5, 50  # a round; a profile grows by some hundred bytes an operator and run
ROUNDS = 4


def node_times(
    layout: Path, references: Sequence[str], data: Mapping[str, Array]
) -> list[tuple[NodeTime, ...]]:
    """Mean times of each bundle's operators, in the order of ``references``.

    Raises:
        EdgekitError: a bundle, its engine or the data is not usable.
    """
    reader = LayoutReader(layout)
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for index, name in enumerate(references):
            own = Path(folder) / str(index)
            own.mkdir()
            models.append(_load(bundles.open_bundle(reader, reader.resolve(name)), own))
        feeds = [
            [model.single(data, index) for index in range(min(16, len(next(iter(data.values())))))]
            for model in models
        ]
        runs = [_runs(model, fed) for model, fed in zip(models, feeds, strict=True)]
        for _ in range(ROUNDS):
            for model, fed, count in zip(models, feeds, runs, strict=True):
                for index in range(count):
                    model.predict(fed[index % len(fed)])
        return [cast("Profiled", model.model).node_times(WARM_UP_RUNS + 1) for model in models]


def _load(bundle: Bundle, folder: Path) -> Predictor:
    manifest = bundle.manifest
    engine = engines.create(manifest.engine, manifest.engine_options, profile=folder)
    return predictor.load(bundle, engine=engine)


def _runs(model: Predictor, feeds: Sequence[Mapping[str, Array]]) -> int:
    """How many inferences of a round fit the time; warms up, and takes one more to know that."""
    for index in range(WARM_UP_RUNS):
        model.predict(feeds[index % len(feeds)])
    begun = time.perf_counter()
    model.predict(feeds[0])
    each_s = max(1e-6, time.perf_counter() - begun)
    return max(RUNS_MIN, min(RUNS_MAX, int(BUDGET_S / ROUNDS / each_s)))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    layout: Annotated[Path, typer.Argument(help="OCI layout folder.")],
    references: Annotated[list[str], typer.Argument(help="Tags or digests of bundles in it.")],
    *,
    data: Annotated[Path, typer.Option(help="Arrays by input name (.npz).")],
) -> None:
    """Print mean microseconds of each operator as JSON, for bundles in the order given."""
    console.emit_json(node_times(layout, references, golden.load_npz(data, str(data))))


if __name__ == "__main__":
    console.run(app)
