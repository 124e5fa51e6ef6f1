"""Inputs of measurements are identified without being read, and written when they are needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgekit.build.data import DataFile
from edgekit.registry import npz


def test_a_file_is_written_once_and_only_when_it_is_asked_for(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(6.0)}

    data = DataFile(tmp_path / "x.npz", ["x", "sha256:1"], make)
    assert data.digest == DataFile(tmp_path / "y.npz", ["x", "sha256:1"], make).digest
    assert data.digest != DataFile(tmp_path / "x.npz", ["x", "sha256:2"], make).digest
    assert made == []
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: data.path(), range(8)))
    assert (paths, made) == ({tmp_path / "x.npz"}, [1])
    assert npz.read(tmp_path / "x.npz")["x"].tolist() == list(range(6))
