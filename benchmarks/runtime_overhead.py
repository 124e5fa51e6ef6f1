"""What does everything on the hot path cost beside the bare engine, in one process?

On are: the guard (dtype, shape, NaN, range), preprocessing (none declared), counting by request id,
latency, class and confidence, frozen-bin probes (32 of the small model's inputs; mean and spread of
a sample of the image), per-rule violation bits, and the drain into the spool every 2,000 calls.
Calls alternate between the bare ``InferenceSession.run`` and ours over the same session; medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
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
    watched,
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


@dataclass(frozen=True)
class Case:
    """One model and how often it is called."""

    name: str
    model: bytes
    shape: tuple[int, ...]
    classes: int
    calls: int
    goal: str
    rows: int  # of data that the probes' bins are derived from; 0: no probes


def measure(folder: Path, case: Case) -> tuple[float, float, int]:
    """Medians in microseconds, bare and ours, and how many probes were on."""
    shape, calls = case.shape, case.calls
    found = contract(shape, case.classes)
    watch = watched(shape, found, case.rows) if case.rows else None
    ref = add_bundle(folder, case.model, found, watch=watch)
    loaded = predictor.load(bundles.open_bundle(LayoutReader(folder), ref.digest))
    disk, clock = PosixDisk(), SystemClock()
    counting = Counting(disk, folder / "regions", clock, Spool.open(disk, folder / "spool", clock))
    region = counting.begin(labels_for(MODEL, ref, "a", loaded))
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
    return statistics.median(bare), statistics.median(ours), len(region.labels.probes)


def main() -> None:
    rows = []
    few = max(40, CALLS // 40)
    image = "1x3x224x224 MobileNet-shaped"
    cases = (
        Case("32 floats", small_model(), (1, FEATURES), CLASSES, CALLS, "<= 20 us", 256),
        Case("32 floats", small_model(), (1, FEATURES), CLASSES, CALLS, "", 0),
        Case(image, image_model(), IMAGE, 1000, few, "<= 3 %", 8),
    )
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            bare, ours, probes = measure(Path(folder), case)
        extra, ratio = ours - bare, ours / bare
        met = ratio <= 1.03 if case.goal.endswith("%") else extra <= 20
        rows.append(
            Row(
                case.name,
                f"p50 overhead with guard, counting, confidence and {probes} probes",
                extra,
                case.goal or "-",
                met,
                "InferenceSession.run",
                bare,
                ratio,
                f"{ours:.1f} us against {bare:.1f} us",
            )
        )
    write("runtime_overhead", "Overhead in the process", rows, __doc__ or "")


if __name__ == "__main__":
    main()
