"""What do guard, counting, windows and confidence cost beside the bare engine, in one process?

Calls alternate between the bare ``InferenceSession.run`` and ours over the same session; medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from device import (
    CLASSES,
    FEATURES,
    IMAGE,
    MODEL,
    add_bundle,
    contract,
    image_model,
    small_model,
)  # fmt: skip
from harness import Row, write

from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, predictor
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.counting import Counting
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.monitors.windows import labels_for
from edgekit_runtime.session import Place, Session
from edgekit_runtime.spool import Spool

CALLS = int(os.environ.get("EDGEKIT_BENCH_CALLS", "4000"))


def _measure(
    folder: Path, model: bytes, shape: tuple[int, ...], classes: int, calls: int
) -> tuple[float, float]:
    ref = add_bundle(folder, model, contract(shape, classes))
    loaded = predictor.load(bundles.open_bundle(LayoutReader(folder), ref.digest))
    disk, clock = PosixDisk(), SystemClock()
    counting = Counting(disk, folder / "regions", clock, Spool.open(disk, folder / "spool", clock))
    region = counting.begin(labels_for(MODEL, ref, "a", loaded.contract))
    place = Place.of(ref.version, "a", counting.shelf(MODEL).lend(region))
    session = Session(loaded, place, clock)
    feed = {"x": np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)}
    bare, ours = [], []
    names, engine = loaded.model.output_names, loaded.model.session
    for number in range(calls + calls // 10):
        begun = time.perf_counter_ns()
        engine.run(names, feed)
        middle = time.perf_counter_ns()
        session.infer(feed, request_id=f"r-{number}")
        end = time.perf_counter_ns()
        if number % 2000 == 1999:
            counting.drain()
        if number >= calls // 10:
            bare.append((middle - begun) / 1e3)
            ours.append((end - middle) / 1e3)
    return statistics.median(bare), statistics.median(ours)


def main() -> None:
    rows = []
    cases = (
        ("32 floats", small_model(), (1, FEATURES), CLASSES, CALLS),
        ("1x3x224x224 MobileNet-shaped", image_model(), IMAGE, 1000, max(40, CALLS // 40)),
    )
    for case, model, shape, classes, calls in cases:
        with tempfile.TemporaryDirectory() as folder:
            bare, ours = _measure(Path(folder), model, shape, classes, calls)
        small = shape[-1] == FEATURES
        extra, ratio = ours - bare, ours / bare
        rows.append(
            Row(
                case,
                "p50 overhead with guard, counting, confidence",
                extra,
                "<= 20 us" if small else "<= 3 %",
                extra <= 20 if small else ratio <= 1.03,
                "InferenceSession.run",
                bare,
                ratio,
                f"{ours:.1f} us against {bare:.1f} us; drift windows come with their issue",
            )
        )
    write("runtime_overhead", "Overhead in the process", rows, __doc__ or "")


if __name__ == "__main__":
    main()
