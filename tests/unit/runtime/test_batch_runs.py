"""Batch runs: right, resumable, never mixed with another model's or other data's chunks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from agentkit import layouts

from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, offline, predictor
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


def test_rows_that_the_guard_refuses_are_named_and_the_others_answered(tmp_path, writer):
    rows = ROWS.copy()
    bad = [3, 70, 71, 249]
    rows[bad, 1] = np.nan
    out = tmp_path / "out.npz"
    model, data = _model(writer), _data(tmp_path, rows)
    with pytest.raises(_InterruptedError):
        BatchRun(model, data, out, chunk=64).run(_interrupt_after(128))
    summary = BatchRun(model, data, out, chunk=64).run()
    assert (summary.samples, summary.refused, summary.resumed) == (250, 4, 128)
    assert list(summary.reasons) == bad
    assert all("NaN" in reason for reason in summary.reasons.values())
    found = np.load(out)
    assert found["refused_rows"].tolist() == bad
    good = np.setdiff1d(np.arange(250), bad)
    want = layouts.reference(1, rows[good])
    np.testing.assert_allclose(found["scores"][good], want, atol=1e-5)
    assert np.isnan(found["scores"][bad]).all()
    with pytest.raises(BadInputError, match=r"4 of 250 rows .* 3, 70, 71, 249"):
        offline.check_refused(summary, 3)
    offline.check_refused(summary, 4)


def test_when_every_row_is_refused_there_is_no_result(tmp_path, writer):
    out = tmp_path / "out.npz"
    with pytest.raises(BadInputError, match="every row breaks the contract; row 0"):
        BatchRun(_model(writer), _data(tmp_path, ROWS * np.nan), out, chunk=64).run()
    assert not out.exists()


def _folder(path, rows):
    path.mkdir()
    np.save(path / "x.npy", rows)
    return path


def _npz(path, rows):
    np.savez(path, x=rows, labels=np.zeros(len(rows)))
    return path


def _compressed(path, rows):
    np.savez_compressed(path, x=rows)
    return path


def _csv(path, rows):
    lines = [",".join([*map(repr, map(float, row)), "1"]) for row in rows]
    path.write_text("a,b,c,d,labels\n" + "\n".join(lines) + "\n\n")
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("in", _folder),
        ("in.npz", _npz),
        ("zipped.npz", _compressed),
        ("in.csv", _csv),
        ("wide.npz", lambda path, rows: _npz(path, rows.astype(np.float64))),
        ("columns.npz", lambda path, rows: _npz(path, np.asfortranarray(rows))),
    ],
)
@pytest.mark.parametrize("batch", ["n", 7])
def test_every_form_of_data_gives_the_same(tmp_path, writer, name, write, batch):
    digest = writer.add(seed=1, batch=batch)
    model = predictor.load(bundles.open_bundle(LayoutReader(writer.root), digest))
    data, out = write(tmp_path / name, ROWS), tmp_path / "out.npz"
    with pytest.raises(_InterruptedError):
        BatchRun(model, data, out, chunk=50).run(_interrupt_after(100))
    assert BatchRun(model, data, out, chunk=50).run().resumed == 100
    np.testing.assert_allclose(np.load(out)["scores"], layouts.reference(1, ROWS), atol=1e-5)


def test_memory_holds_a_chunk_and_not_the_data(tmp_path, writer):
    rows = np.tile(ROWS, (1200, 1))  # 300,000 rows: 4.8 MB in, 3.6 MB out
    data, out = _data(tmp_path, rows), tmp_path / "out.npz"
    model = _model(writer)
    del rows
    tracemalloc.start()
    try:
        BatchRun(model, data, out, chunk=10_000).run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.load(out)["scores"].shape == (300_000, 3)
    assert peak < 2_500_000


def test_only_one_run_writes_a_result(tmp_path, writer):
    model, data, out = _model(writer), _data(tmp_path), tmp_path / "out.npz"

    def again(_done, _total):
        with pytest.raises(UnavailableError, match="another run"):
            BatchRun(model, data, out, chunk=100).run()
        raise _InterruptedError

    with pytest.raises(_InterruptedError):
        BatchRun(model, data, out, chunk=100).run(again)
    assert BatchRun(model, data, out, chunk=100).run().resumed == 100


@pytest.mark.parametrize("arrays", [{}, {"y": ROWS}, {"x": ROWS[:0]}, {"x": np.float32(1)}])
def test_data_that_does_not_fit_is_refused(tmp_path, writer, arrays):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(BadInputError):
        BatchRun(_model(writer), tmp_path / "in.npz", tmp_path / "out.npz", chunk=64)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("in.csv", "a,b,c,d\n1,2,3\n", "line 2 has 3 columns, the first 4"),
        ("in.csv", "a,b,c\n1,2,3\n", "3 columns, a row of input 'x' has 4"),
        ("in.csv", "a,b,c,d\n1,2,3,4\n1,2,x,4\n", "line 3: could not convert"),
        ("in.csv", "", "names no columns"),
        ("in.csv", "a,b,c,d\n", "not zero"),
        ("in.npz", "PK and then nothing", "not readable"),
        ("in.parquet", "", "unknown form"),
        ("absent.npz", None, "No such file"),
    ],
)
def test_files_that_are_wrong_are_refused_by_name(tmp_path, writer, name, text, problem):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    out = tmp_path / "out.npz"
    with pytest.raises(BadInputError, match=problem) as caught:
        BatchRun(_model(writer), path, out, chunk=64).run()
    assert str(path) in caught.value.message
    assert not out.exists()


def test_a_file_that_changes_under_a_run_gives_no_result(tmp_path, writer):
    model, data, out = _model(writer), _data(tmp_path), tmp_path / "out.npz"

    def change(done, total):
        if done == total:
            _data(tmp_path, ROWS + 1)

    with pytest.raises(BadInputError, match="changed while"):
        BatchRun(model, data, out, chunk=64).run(change)
    assert not out.exists()
    assert BatchRun(model, data, out, chunk=64).run().resumed == 0
    np.testing.assert_allclose(np.load(out)["scores"], layouts.reference(1, ROWS + 1), atol=1e-5)


def test_a_file_that_was_cut_is_refused(tmp_path, writer):
    data = _data(tmp_path)
    whole = data.read_bytes()
    data.write_bytes(whole[:2000])
    with pytest.raises(BadInputError, match="not readable"):
        BatchRun(_model(writer), data, tmp_path / "out.npz", chunk=64)
    spoiled = bytearray(whole)
    spoiled[1500] ^= 1
    data.write_bytes(spoiled)
    with pytest.raises(BadInputError, match=r"rows .* are not readable"):
        BatchRun(_model(writer), data, tmp_path / "out.npz", chunk=64).run()


def test_progress_counts_what_this_run_did(monkeypatch):
    now = iter([0.0, 0.1, 2.0, 2.5, 4.0])
    monkeypatch.setattr(offline, "monotonic", lambda: next(now))
    told = []
    progress = offline.Progress(told.append)
    for done in (500, 600, 700, 800):  # 500 were there before
        progress(done, 1000)
    assert told == [
        "600 of 1000 samples, about 8 s left",
        "800 of 1000 samples, about 3 s left",
    ]
