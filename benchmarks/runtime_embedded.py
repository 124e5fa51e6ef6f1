"""What does a call to an embedded session cost beside the bare engine, with an agent that runs?

The session looks at the agent's socket before each call, and counts in a ring that the agent
drains meanwhile. Calls alternate with the bare ``InferenceSession.run`` over the same engine
session; medians.
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
    agent,
    contract,
    deploy,
    free_port,
    image_model,
    small_model,
)  # fmt: skip
from harness import Row, write

from edgekit_runtime import Session

CALLS = int(os.environ.get("EDGEKIT_BENCH_CALLS", "4000"))


def _measure(session: Session, shape: tuple[int, ...], calls: int) -> tuple[float, float]:
    held = session._held  # noqa: SLF001 - the engine's session inside, to call it bare
    assert held is not None
    model = held.core.predictor.model
    names, engine = model.output_names, model.session  # type: ignore[attr-defined]
    feed = {"x": np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)}
    bare, ours = [], []
    for number in range(calls + calls // 10):
        begun = time.perf_counter_ns()
        engine.run(names, feed)
        middle = time.perf_counter_ns()
        session.infer(feed, request_id=f"r-{number}")
        end = time.perf_counter_ns()
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
            state = Path(folder) / "state"
            deploy(state, add_bundle(state, model, contract(shape, classes)))
            with agent(state, free_port()), Session.open(MODEL, state_dir=state) as session:
                bare, ours = _measure(session, shape, calls)
        small = shape[-1] == FEATURES
        extra, ratio = ours - bare, ours / bare
        rows.append(
            Row(
                case,
                "p50 overhead of Session.infer",
                extra,
                "<= 20 us" if small else "<= 3 %",
                extra <= 20 if small else ratio <= 1.03,
                "InferenceSession.run",
                bare,
                ratio,
                f"{ours:.1f} us against {bare:.1f} us",
            )
        )
    write("runtime_embedded", "Overhead of an embedded session", rows, __doc__ or "")


if __name__ == "__main__":
    main()
