"""``python -m edgekit_runtime.evaluate``: one bundle over one data set, by the agent's own code.

The builder calls it natively, under emulation or on a device, so that what is measured is the code
that ships.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.evaluation import Evaluation, Latency
from edgekit.contracts.oci import LayoutReader
from edgekit.stats.metrics import LABELS, METRICS
from edgekit_runtime import (
    bundles,
    console,
    contract_facts,
    golden,
    machine_facts,
    predictor,
    process_facts,
)
from edgekit_runtime.ports import Array
from edgekit_runtime.predictor import Predictor

WARM_UP_RUNS = 10  # first runs allocate and page in; they are not what a device does all day


def evaluate(
    layout: Path,
    reference: str | None,
    data: Mapping[str, Array],
    *,
    latency_runs: int = 0,
    threads: int = 1,
) -> tuple[Evaluation, dict[str, Array]]:
    """Run the bundle over ``data``; returns the figures and the outputs.

    Raises:
        EdgekitError: the layout, bundle, engine or data is not usable.
    """
    reader = LayoutReader(layout)
    started = time.perf_counter()
    bundle = bundles.open_bundle(reader, reader.resolve(reference))
    model = predictor.load(bundle, threads=threads)
    load_s = time.perf_counter() - started
    outputs = model.predict_samples(data)
    quality_metric = bundle.contract.quality.metric
    evaluation = Evaluation(
        bundle=bundle.digest,
        target=bundle.manifest.target,
        n=len(next(iter(outputs.values()))),
        quality=_quality(model, outputs, data),
        metric=quality_metric,
        golden=model.replay_golden(bundle.golden) if bundle.golden else None,
        latency=_latency(model, data, latency_runs, threads) if latency_runs else None,
        load_s=load_s,
        rss_peak_bytes=_rss_peak_bytes(),
        engine=model.engine.name,
        engine_version=model.engine.version,
        engine_facts=dict(model.model.facts),
        machine=machine_facts.arch(),
        isa=machine_facts.isa_flags(),
    )
    return evaluation, outputs


def _quality(
    model: Predictor, outputs: Mapping[str, Array], data: Mapping[str, Array]
) -> float | None:
    metric = METRICS.get(model.contract.quality.metric)
    truth = data.get(LABELS)
    if metric is None or not metric.needs_labels or truth is None:
        return None
    scored = outputs[contract_facts.scored_output(model.contract).name]
    if len(truth) != len(scored):
        raise BadInputError(f"data: {len(truth)} labels for {len(scored)} samples")
    try:
        return metric.value(metric.score(scored, truth))
    except ValueError as exc:
        raise BadInputError(
            f"data: labels of shape {truth.shape} do not fit outputs {scored.shape}: {exc}"
        ) from exc


def _latency(model: Predictor, data: Mapping[str, Array], runs: int, threads: int) -> Latency:
    total = len(data[model.contract.inputs[0].name])
    feeds = [model.single(data, index) for index in range(min(total, runs))]
    for index in range(WARM_UP_RUNS):
        model.predict(feeds[index % len(feeds)])
    times_ms = np.empty(runs)
    for index in range(runs):
        begun = time.perf_counter_ns()
        model.predict(feeds[index % len(feeds)])
        times_ms[index] = (time.perf_counter_ns() - begun) / 1e6
    p50, p95 = (float(value) for value in np.quantile(times_ms, (0.5, 0.95)))
    return Latency(p50_ms=p50, p95_ms=p95, runs=runs, threads=threads)


def _rss_peak_bytes() -> int:
    if (found := process_facts.peak_bytes()) is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def _write_outputs(path: Path, outputs: Mapping[str, Array]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    arrays: dict[str, Any] = dict(outputs)
    try:
        with translate_os_errors("write", path):
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _split(layout: str) -> tuple[Path, str | None]:
    """``LAYOUT@REFERENCE``; an existing folder whose name holds ``@`` wins."""
    if "@" not in layout or Path(layout).is_dir():
        return Path(layout), None
    folder, _, reference = layout.rpartition("@")
    return Path(folder), reference


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    layout: Annotated[
        str,
        typer.Argument(metavar="LAYOUT[@REF]", help="OCI layout folder, @ a tag or a digest."),
    ],
    *,
    data: Annotated[
        Path, typer.Option(help="Arrays by input name, `labels` if there are any (.npz).")
    ],
    outputs: Annotated[
        Path | None, typer.Option(help="Write the outputs, by output name, to this .npz.")
    ] = None,
    latency_runs: Annotated[
        int, typer.Option(min=0, help="Time this many single-sample inferences; 0 times none.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads the engine may use.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Run a bundle over a data set and print quality, latency, golden verdict and facts."""
    folder, reference = _split(layout)
    arrays = golden.load_npz(data, str(data))
    evaluation, found = evaluate(
        folder, reference, arrays, latency_runs=latency_runs, threads=threads
    )
    if outputs is not None:
        _write_outputs(outputs, found)
    if json:
        console.emit_json(evaluation)
    else:
        console.emit(_describe(evaluation))


def _describe(result: Evaluation) -> str:
    lines = [f"bundle   {result.bundle} for {result.target}", f"samples  {result.n}"]
    quality = "not measured" if result.quality is None else f"{result.quality:.4f}"
    lines.append(f"quality  {result.metric} {quality}")
    if result.golden is not None:
        lines.append(f"golden   {result.golden.outcome.value}: {result.golden.reason}")
    if result.latency is not None:
        timed = result.latency
        lines.append(f"latency  p50 {timed.p50_ms:.3f} ms, p95 {timed.p95_ms:.3f} ms")
    lines.append(f"engine   {result.engine} {result.engine_version} on {result.machine}")
    return "\n".join(lines)


if __name__ == "__main__":
    console.run(app)
