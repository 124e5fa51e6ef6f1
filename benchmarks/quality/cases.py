"""Real models with real data, out of packages: what is measured, and by which metric.

Each case gives a model file, arrays to register, and a held-out part that no search and no gate
ever sees. ``held`` counts at least 6 / budget samples, so that a variant without a loss can be told
from one that loses the budget.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quality import text
from quality.workshop import AEON, Array, Arrays, Case, Workshop, cut


def power(shop: Workshop) -> Case:
    """1-D CNN on ItalyPowerDemand."""
    from edgekit.cli.demo import train
    from edgekit.cli.demo.data import Split

    parts = {}
    for part in ("TRAIN", "TEST"):
        name = f"aeon/datasets/data/ItalyPowerDemand/ItalyPowerDemand_{part}.ts"
        text = shop.wheel(AEON).read(name).decode()
        rows = [line.rsplit(":", 1) for line in text.splitlines() if line and line[0] not in "@#"]
        x = np.asarray([row[0].split(",") for row in rows], np.float32)
        y = np.asarray([int(float(row[1])) - 1 for row in rows], np.int64)
        parts[part] = Split(x, y)
    path = shop.folder / "power.onnx"
    train.train(parts["TRAIN"], path, kernels=(16, 16), seed=1)
    test = parts["TEST"]
    kept, held = cut({train.INPUT: test.x, "labels": test.y}, 300)
    return Case("power demand CNN", path, {"data": kept}, held, 0.03)


def file_type(shop: Workshop) -> Case:
    """Magika's classifier on files of this machine: the extension is the truth."""
    wheel = shop.wheel("magika==1.0.3")
    path = shop.folder / "magika.onnx"
    path.write_bytes(wheel.read("magika/models/standard_v3_3/model.onnx"))
    config = json.loads(wheel.read("magika/models/standard_v3_3/config.min.json"))
    labels = {name: index for index, name in enumerate(config["target_labels_space"])}
    x, y = [], []
    for raw, label in _files():
        block = config["block_size"]
        start = raw[:block].lstrip()[: config["beg_size"]]
        end = raw[-block:].rstrip()[-config["end_size"] :]
        pad = config["padding_token"]
        row = np.full(config["beg_size"] + config["end_size"], pad, np.int32)
        row[: len(start)] = np.frombuffer(start, np.uint8)
        if end:
            row[-len(end) :] = np.frombuffer(end, np.uint8)
        x.append(row)
        y.append(labels[label])
    kept, held = cut({"bytes": np.stack(x), "labels": np.asarray(y, np.int64)}, 1200)
    return Case("file type (magika)", path, {"data": kept}, held, 0.01)


_EXTENSIONS = {
    "c": "c", "h": "c", "css": "css", "csv": "csv", "elf": "elf", "gif": "gif", "go": "go",
    "gz": "gzip", "html": "html", "ico": "ico", "ini": "ini", "java": "java", "js": "javascript",
    "json": "json", "jpg": "jpeg", "md": "markdown", "npz": "npz", "otf": "otf", "pem": "pem",
    "php": "php", "pl": "perl", "pm": "perl", "png": "png", "po": "po", "py": "python",
    "pyc": "pythonbytecode", "rs": "rust", "rst": "rst", "sh": "shell", "so": "elf", "svg": "svg",
    "tcl": "tcl", "toml": "toml", "ts": "typescript", "ttf": "ttf", "wav": "wav", "whl": "zip",
    "woff": "woff", "woff2": "woff2", "xml": "xml", "yaml": "yaml", "yml": "yaml", "zip": "zip",
}  # fmt: skip
_PER_LABEL = 200


def _files() -> list[tuple[bytes, str]]:
    roots = (Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib", Path("/usr"))
    counts: dict[str, int] = {}
    found: dict[str, tuple[bytes, str]] = {}
    for root in roots:
        for path in sorted(
            root.rglob("*.*"), key=lambda p: hashlib.sha256(str(p).encode()).digest()
        ):
            label = _EXTENSIONS.get(path.suffix[1:])
            if label is None or counts.get(label, 0) >= _PER_LABEL or path.is_symlink():
                continue
            try:
                if not path.is_file() or not 64 <= path.stat().st_size <= 20_000_000:
                    continue
                raw = path.read_bytes()
            except OSError:
                continue
            key = hashlib.sha256(raw[:4096] + raw[-4096:]).hexdigest()
            if key not in found and raw[:4096].strip() and raw[-4096:].strip():
                found[key] = (raw, label)
                counts[label] = counts.get(label, 0) + 1
    return list(found.values())


def voice(shop: Workshop) -> Case:
    """Silero's voice activity detector, 16 kHz, on espeak-ng's speech in noise, frame by frame.

    Its state starts at zero with each call, and what the graph answers is made two classes, so that
    a frame is right or wrong. A call holds the frames of one stretch of sound in their order.
    """
    raw = shop.wheel("silero-vad==6.2.3").read("silero_vad/data/silero_vad_16k_sequence.onnx")
    path = shop.folder / "voice.onnx"
    onnx.save(_two_classes(onnx.load_from_string(raw)), path)
    lengths = {"calibration": 512, "tuning": 1024, "evaluation": 1536, "golden": 64, "held": 1536}
    frames, labels = _speech(sum(lengths.values()), shop.folder)
    splits: dict[str, Arrays] = {}
    start = 0
    for name, length in lengths.items():
        rows = slice(start, start + length)
        splits[name] = {"input": frames[rows], "labels": labels[rows]}
        start += length
    held = splits.pop("held")
    return Case("voice activity (silero)", path, splits, held, 0.01)


def _two_classes(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    for name in ("h", "c"):
        graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 128), np.float32), name))
        graph.input.remove(next(value for value in graph.input if value.name == name))
    graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int64), "edgekit_axis"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1), "edgekit_one"))
    graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["speech_probs", "edgekit_axis"], ["edgekit_p"]),
            helper.make_node("Sub", ["edgekit_one", "edgekit_p"], ["edgekit_q"]),
            helper.make_node("Concat", ["edgekit_q", "edgekit_p"], ["speech"], axis=1),
        ]
    )
    del graph.output[:]
    shape = ["frames", 2]
    graph.output.append(helper.make_tensor_value_info("speech", onnx.TensorProto.FLOAT, shape))
    return model


_RATE, _HOP, _CONTEXT = 16000, 512, 64


def _speech(frames: int, folder: Path) -> tuple[Array, Array]:
    """Windows of sound (context and hop), and whether there is speech in the hop."""
    rng = np.random.default_rng(0)
    text = Path("/usr/share/common-licenses/GPL-3").read_text(encoding="utf-8").split("\n\n")
    clean: list[Array] = []
    for index, words in enumerate(text):
        if sum(map(len, clean)) > (frames + 2) * _HOP:
            break
        voice_name = ("en", "en-us", "de", "fr", "es")[index % 5]
        target = folder / "speech.wav"
        command = ["espeak-ng", "-v", voice_name, "-w", str(target), " ".join(words.split())[:300]]
        subprocess.run(command, check=True)
        with wave.open(io.BytesIO(target.read_bytes())) as sound:
            rate = sound.getframerate()
            samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / 32768.0
        when = np.arange(0, len(samples), rate / _RATE)
        clean += [np.interp(when, np.arange(len(samples)), samples), np.zeros(_RATE)]
    spoken = np.concatenate(clean)[: (frames + 1) * _HOP]
    noise = rng.normal(0, 0.01, len(spoken)) * np.repeat(rng.uniform(0.2, 2, frames + 1), _HOP)
    mixed = np.concatenate([np.zeros(_CONTEXT), spoken + noise]).astype(np.float32)
    starts = np.arange(frames) * _HOP
    windows = np.stack([mixed[s : s + _CONTEXT + _HOP] for s in starts])
    energy = np.asarray([np.sqrt(np.mean(spoken[s : s + _HOP] ** 2)) for s in starts])
    return windows, (energy > 0.005).astype(np.int64)


def digits(shop: Workshop) -> Case:
    """Small MobileNetV2 on scikit-learn's digits, half of them noisy; each half is a slice."""
    path, arrays = shop.made("digits", AEON)
    kept, held = cut(arrays, 700)
    return Case("digits MobileNetV2", path, {"data": kept}, held, 0.02)


def anomaly(shop: Workshop) -> Case:
    """Convolutional autoencoder on UCR-135 (a pressure curve with one short anomaly).

    The graph answers how badly it rebuilds a window, trained on the series' normal beginning; the
    truth says whether the window holds the anomaly, and the metric is the area under the ROC curve.
    That is no mean of scores per window, so it comes as a function, `quality.auc:area`.

    Windows start at each point and overlap, and the few dozen anomalous ones all hold the same
    event: the bound speaks of windows of this series, not of other anomalies.
    """
    path, arrays = shop.made("anomaly", AEON)
    kept, held = cut(arrays, 1500)
    return Case("anomaly autoencoder", path, {"data": kept}, held, 0.02, "quality.auc:area")


def vowels(shop: Workshop) -> Case:
    """Bidirectional LSTM on JapaneseVowels."""
    path, arrays = shop.made("vowels", AEON)
    kept, held = cut(arrays, 130)
    return Case("vowels bi-LSTM", path, {"data": kept}, held, 0.05)


CASES: dict[str, Callable[[Workshop], Case]] = {
    "power": power,
    "file-type": file_type,
    "voice": voice,
    "digits": digits,
    "vowels": vowels,
    "anomaly": anomaly,
    "ocr": text.line,
    "embedding": text.sentence,
}
