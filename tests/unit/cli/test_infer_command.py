"""``edgekit infer``, the command; what it runs is tested with the runtime."""

from __future__ import annotations

import numpy as np
from agentkit import layouts

from edgekit.cli.main import app

ROWS = np.random.default_rng(5).normal(size=(250, 4)).astype(np.float32)


def test_the_command_runs_a_bundle_and_a_registered_model(tmp_path, capsys):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    writer.add(seed=1, version="1", tag="v1")
    data, more = tmp_path / "data.npz", tmp_path / "more.npz"
    np.savez(data, x=ROWS)
    np.savez(more, x=np.random.default_rng(6).normal(size=(600, 4)).astype(np.float32))
    registry = ["--registry", str(tmp_path / "registry")]
    model = tmp_path / "model.onnx"
    model.write_bytes(layouts.model_bytes(1))
    first, second = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    commands = [
        ["infer", f"{writer.root}@v1", "--in", str(data), "--out", first],
        ["model", "add", "m", str(model), "--data", str(more), *registry],
        ["infer", "m", "--in", str(data), "--out", second, *registry],
    ]
    for words in commands:
        app(words, standalone_mode=False)
    assert "250 samples, scores [250, 3]" in capsys.readouterr().out
    assert np.load(first)["scores"].shape == (250, 3)
    # The registered original has no preprocessing in its contract: it sees the rows as they are.
    shares = layouts.reference(1, ROWS * 2 + 1)
    np.testing.assert_allclose(np.load(second)["scores"], shares, atol=1e-5)
