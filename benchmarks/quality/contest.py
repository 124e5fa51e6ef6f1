"""Runs models of both engines over data, and times them in turns: ``python contest.py REQUEST``.

The request names models (folder, engine, whether it is ours) and data; the answer, an ``.npz``,
holds outputs and the median of each round. Peers run as their users run them (ONNX Runtime at its
default optimisation level, OpenVINO in f32), ours through the device's engine. One thread each.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekit_runtime import engines

Feed = dict[str, np.ndarray]
BLOCK_S = 0.02
CHUNK = 64


def _ours(folder: Path, engine: str) -> tuple[Callable[[Feed], Feed], tuple[str, ...]]:
    path = folder / ("model.xml" if engine == "openvino" else "model.onnx")
    weights = path.with_suffix(".bin")
    told = folder / "options.json"  # how the build measured ours
    options = json.loads(told.read_text()) if told.exists() else {}
    model = engines.create(engine, options).load(
        path, weights=weights if weights.exists() else None
    )
    return model.run, model.input_names


def _onnxruntime(folder: Path) -> tuple[Callable[[Feed], Feed], tuple[str, ...]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return (
        lambda feed: dict(zip(names, session.run(names, feed), strict=True)),
        tuple(value.name for value in session.get_inputs()),
    )


def _load(entry: dict[str, str]) -> tuple[Callable[[Feed], Feed], tuple[str, ...]]:
    folder = Path(entry["folder"])
    # An OpenVINO peer is what `Core.compile_model` with one thread and f32 gives: the same as ours.
    if entry["ours"] or entry["engine"] == "openvino":
        return _ours(folder, entry["engine"])
    return _onnxruntime(folder)


def _outputs(run: Callable[[Feed], Feed], names: tuple[str, ...], data: Feed, scored: str):
    starts = range(0, len(data[names[0]]), CHUNK)
    parts = [run({k: data[k][at : at + CHUNK] for k in names})[scored] for at in starts]
    return np.concatenate(parts)


def main(path: str) -> None:
    request = json.loads(Path(path).read_text())
    with np.load(request["data"]) as found:
        data = {name: found[name] for name in found.files}
    loaded, answer = {}, {}
    for name, entry in request["models"].items():
        try:
            run, inputs = _load(entry)
            answer[f"out.{name}"] = _outputs(run, inputs, data, request["scored"])
        except Exception as exc:  # noqa: BLE001 - a peer that does not run is a result
            answer[f"error.{name}"] = np.asarray(" ".join(str(exc).split())[:300])
            continue
        feeds = [
            {k: data[k][i : i + 1] for k in inputs} for i in range(min(16, len(data[inputs[0]])))
        ]
        loaded[name] = run, feeds
    blocks, times = {}, {name: [] for name in loaded}
    for name, (run, feeds) in loaded.items():
        _block(run, feeds, 10)
        blocks[name] = max(3, int(BLOCK_S * 1e3 / _block(run, feeds, 10)))
    order = list(loaded)
    shuffler = random.Random(1)
    for _ in range(request["rounds"]):
        shuffler.shuffle(order)
        for name in order:
            times[name].append(_block(*loaded[name], blocks[name]))
    for name, found_times in times.items():
        answer[f"ms.{name}"] = np.asarray(found_times)
    np.savez(request["out"], **answer)


def _block(run: Callable[[Feed], Feed], feeds: list[Feed], runs: int) -> float:
    taken = []
    for index in range(runs):
        begun = time.perf_counter_ns()
        run(feeds[index % len(feeds)])
        taken.append((time.perf_counter_ns() - begun) / 1e6)
    return float(np.median(taken))


if __name__ == "__main__":
    main(sys.argv[1])
