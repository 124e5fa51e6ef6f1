"""Batch runs: right, resumable, never mixed with another model's or other data's chunks."""

from __future__ import annotations

import numpy as np
import pytest
from agentkit import layouts

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, predictor
from edgekit_runtime.errors import GuardError
from edgekit_runtime.offline import BatchRun

ROWS = np.random.default_rng(5).normal(size=(250, 4)).astype(np.float32)


@pytest.fixture
def writer(tmp_path):
    return layouts.LayoutWriter(tmp_path / "layout")


def _model(writer, seed=1):
    digest = writer.add(seed=seed, version=str(seed))
    return predictor.load(bundles.open_bundle(LayoutReader(writer.root), digest))


def _data(tmp_path, rows=ROWS):
    path = tmp_path / "in.npz"
    np.savez(path, x=rows)
    return path


class _InterruptedError(Exception):
    pass


def _interrupt_after(samples):
    def progress(done, _total):
        if done >= samples:
            raise _InterruptedError

    return progress


def test_answers_equal_the_reference_and_no_parts_are_left(tmp_path, writer):
    out = tmp_path / "out.npz"
    summary = BatchRun(_model(writer), _data(tmp_path), out, chunk=64).run()
    assert (summary.samples, summary.resumed, summary.outputs) == (250, 0, {"scores": (250, 3)})
    scores = np.load(out)["scores"]
    np.testing.assert_allclose(scores, layouts.reference(1, ROWS), atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npz", "layout", "out.npz"]


def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path, writer):
    model, data, out = _model(writer), _data(tmp_path), tmp_path / "out.npz"
    with pytest.raises(_InterruptedError):
        BatchRun(model, data, out, chunk=32).run(_interrupt_after(96))
    assert not out.exists()
    summary = BatchRun(model, data, out, chunk=32).run()
    assert summary.resumed == 96
    np.testing.assert_allclose(np.load(out)["scores"], layouts.reference(1, ROWS), atol=1e-5)


@pytest.mark.parametrize("change", ["model", "data", "chunk"])
def test_chunks_of_something_else_are_not_taken_over(tmp_path, writer, change):
    out = tmp_path / "out.npz"
    with pytest.raises(_InterruptedError):
        BatchRun(_model(writer), _data(tmp_path), out, chunk=32).run(_interrupt_after(96))
    model = _model(writer, seed=2 if change == "model" else 1)
    rows = ROWS + 1 if change == "data" else ROWS
    chunk = 50 if change == "chunk" else 32
    assert BatchRun(model, _data(tmp_path, rows), out, chunk=chunk).run().resumed == 0
    seed = 2 if change == "model" else 1
    np.testing.assert_allclose(np.load(out)["scores"], layouts.reference(seed, rows), atol=1e-5)


def test_a_bad_sample_is_named_by_its_chunk(tmp_path, writer):
    rows = ROWS.copy()
    rows[70, 1] = np.nan
    with pytest.raises(GuardError, match="samples 64-127"):
        BatchRun(_model(writer), _data(tmp_path, rows), tmp_path / "out.npz", chunk=64).run()
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("arrays", [{}, {"y": ROWS}, {"x": ROWS[:0]}, {"x": np.float32(1)}])
def test_data_that_does_not_fit_is_refused(tmp_path, writer, arrays):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(BadInputError):
        BatchRun(_model(writer), tmp_path / "in.npz", tmp_path / "out.npz", chunk=64)
