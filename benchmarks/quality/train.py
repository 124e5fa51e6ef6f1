"""Trains models in minutes, in a Python that has PyTorch: ``python train.py CASE AEON OUT``.

Writes ``CASE.onnx`` and ``CASE.npz``, test inputs with labels.
"""

from __future__ import annotations

import sys
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


def digits(_: zipfile.ZipFile) -> tuple[nn.Module, np.ndarray, np.ndarray, dict]:
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
    return model, np.concatenate([x[test], noisy(x[test])]), np.tile(y[test], 2), {
        "slice": np.repeat([0, 1], n)
    }  # fmt: skip


def vowels(aeon: zipfile.ZipFile) -> tuple[nn.Module, np.ndarray, np.ndarray, dict]:
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
    return model, *parts[1], {}


def main(name: str, aeon: str, out: str) -> None:
    torch.manual_seed(0)
    model, x, y, more = {"digits": digits, "vowels": vowels}[name](zipfile.ZipFile(aeon))
    with torch.no_grad():
        right = (model(torch.from_numpy(x)).argmax(1).numpy() == y).mean()
    print(f"{name}: {len(x)} test samples, accuracy {right:.4f}")
    np.savez(Path(out) / f"{name}.npz", x=x, labels=y, **more)
    torch.onnx.export(
        model, (torch.from_numpy(x[:1]),), str(Path(out) / f"{name}.onnx"),
        input_names=["x"], output_names=["y"], opset_version=17, dynamo=False,
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
