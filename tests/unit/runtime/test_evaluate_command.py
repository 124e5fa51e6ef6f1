"""The evaluate command: figures, outputs and its answers to bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from agentkit import layouts

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.evaluation import Evaluation
from edgekit.contracts.verdict import Outcome
from edgekit_runtime import evaluate as command
from edgekit_runtime.errors import GuardError, UnsuitableError


@pytest.fixture
def x():
    return np.random.default_rng(3).normal(size=(150, layouts.FEATURES)).astype(np.float32)


def _layout(tmp_path, **options):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    return writer, writer.add(**options)


def test_evaluate_reports_quality_latency_golden_and_outputs(tmp_path, x):
    writer, name = _layout(tmp_path)
    labels = layouts.reference(1, x).argmax(axis=1)
    labels[:15] = (labels[:15] + 1) % 3
    result, outputs = command.evaluate(
        writer.root, None, {"x": x, "labels": labels}, latency_runs=20
    )
    assert (result.bundle, result.n, result.metric) == (name, 150, "top1")
    assert result.quality == pytest.approx(0.9)
    assert result.golden is not None
    assert result.golden.outcome is Outcome.PASS
    assert result.latency is not None
    assert 0 < result.latency.p50_ms <= result.latency.p95_ms
    assert result.rss_peak_bytes > 1e6
    np.testing.assert_allclose(outputs["scores"], layouts.reference(1, x), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_evaluate_feeds_a_fixed_batch_and_keeps_every_sample_once(tmp_path, x, batch):
    writer, _ = _layout(tmp_path, batch=batch)
    result, outputs = command.evaluate(writer.root, None, {"x": x}, latency_runs=3)
    assert result.n == 150
    assert result.quality is None  # no labels: not measured, not zero
    np.testing.assert_allclose(outputs["scores"], layouts.reference(1, x), atol=1e-5)


def test_evaluate_takes_float64_and_refuses_other_kinds(tmp_path, x):
    writer, _ = _layout(tmp_path)
    command.evaluate(writer.root, None, {"x": x.astype(np.float64)})
    with pytest.raises(GuardError, match="dtype"):
        command.evaluate(writer.root, None, {"x": x.astype(np.int64)})


def test_evaluate_golden_mismatch_fails_its_verdict(tmp_path, x):
    writer, _ = _layout(tmp_path, golden_seed=2)
    result, _ = command.evaluate(writer.root, None, {"x": x})
    assert result.golden is not None
    assert result.golden.outcome is Outcome.FAIL


def test_evaluate_refuses_an_altered_blob(tmp_path, x):
    writer, _ = _layout(tmp_path)
    biggest = max((writer.root / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-1] + b"!")
    with pytest.raises(BadInputError, match="corrupted"):
        command.evaluate(writer.root, None, {"x": x})


def test_evaluate_refuses_an_engine_outside_the_range(tmp_path, x):
    writer, _ = _layout(tmp_path, engine_versions="<1.0")
    with pytest.raises(UnsuitableError, match=r"onnxruntime <1\.0"):
        command.evaluate(writer.root, None, {"x": x})


def test_evaluate_refuses_a_file_that_is_no_model(tmp_path, x):
    writer, _ = _layout(tmp_path, files={"model": b"not a model"})
    with pytest.raises(BadInputError, match="cannot load"):
        command.evaluate(writer.root, None, {"x": x})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "no array 'x'"),
        ({"x": np.zeros((0, 4), np.float32)}, "not zero"),
        ({"x": np.zeros((5, 3), np.float32)}, "shape"),
        ({"x": np.full((5, 4), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((5, 4), np.float32), "labels": np.zeros(4, int)}, "4 labels for 5"),
        ({"x": np.zeros((5, 4), np.float32), "labels": np.zeros((5, 2), int)}, "labels of shape"),
    ],
)
def test_evaluate_names_what_is_wrong_with_the_data(tmp_path, data, message):
    writer, _ = _layout(tmp_path)
    with pytest.raises(BadInputError, match=message):
        command.evaluate(writer.root, None, data)


def test_command_prints_json_and_writes_outputs(tmp_path, x):
    writer, name = _layout(tmp_path)
    np.savez(tmp_path / "data.npz", x=x)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgekit_runtime.evaluate", f"{writer.root}@{name}"),
            *("--data", tmp_path / "data.npz", "--outputs", tmp_path / "out.npz"),
            *("--latency-runs", "5", "--json"),
        ],
        capture_output=True,
        check=True,
    )
    result = codec.decode(Evaluation, done.stdout, what="stdout")
    assert result.bundle == name
    with np.load(tmp_path / "out.npz") as written:
        np.testing.assert_allclose(written["scores"], layouts.reference(1, x), atol=1e-5)


def test_command_answers_bad_input_with_one_line_a_hint_and_its_exit_code(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgekit_runtime.evaluate", tmp_path / "absent"),
            *("--data", tmp_path / "absent.npz", "--outputs", tmp_path / "out.npz"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert not (tmp_path / "out.npz").exists()
