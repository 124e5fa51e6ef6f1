"""Streaming calibration: exact extremes, sound rules, memory that does not grow with samples."""

import json
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import contract_of, ranges_of, session

from edgekit.build import ranges
from edgekit.build.candidates import Calibration
from edgekit.build.quantizers import calibrate
from edgekit.contracts import codec
from edgekit.registry import npz


def test_extremes_are_exact_for_every_float_tensor():
    model = graphs.convolution()
    x, _ = graphs.waves(50)
    found = ranges_of(model, x)
    assert found.n == 50
    names = ["image", "c", "r", "c2", "p", "y"]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for name, values in zip(names, session(shown).run(None, {"x": x}), strict=True):
        expected = (float(values.min()), float(values.max()))
        assert found.tensors[name].minmax == pytest.approx(expected, abs=1e-5)
    assert "shape" not in found.tensors


def test_channels_are_known_where_a_weight_layer_reads():
    x, _ = graphs.waves(50)
    found = ranges_of(graphs.convolution(channels=8), x).tensors
    assert len(found["r"].low) == len(found["r"].high) == 8
    assert len(found["f"].high) == 8
    assert max(found["r"].high) == pytest.approx(found["r"].minmax[1])
    assert found["p"].high == ()


@pytest.mark.parametrize("opset", [17, 18])  # from 18 on a reduction's axes are an input
def test_extremes_by_channel_are_exact(opset):
    x, _ = graphs.waves(50)
    model = graphs.convolution(channels=8, opset=opset)
    found = ranges_of(model, x).tensors
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("r", "f"))
    for name, values in zip("rf", session(shown).run(None, {"x": x}), strict=True):
        moved = np.moveaxis(values, 1, 0).reshape(8, -1)
        assert found[name].low == pytest.approx(moved.min(axis=1), abs=1e-5)
        assert found[name].high == pytest.approx(moved.max(axis=1), abs=1e-5)


def test_large_activations_do_not_multiply_the_passes(monkeypatch):
    x, _ = graphs.waves(64)
    passes = []

    def feeds(arrays, contract, chunk, real=calibrate.feeds):
        passes.append(chunk)
        return real(arrays, contract, chunk)

    monkeypatch.setattr(calibrate, "feeds", feeds)
    ranges_of(graphs.convolution(channels=64), x)
    assert len(passes) == 3  # the first sample, the extremes, one group
    passes.clear()
    monkeypatch.setattr(calibrate, "GROUP_BYTES_MAX", 50_000)  # about two samples' tensors
    ranges_of(graphs.convolution(channels=64), x)
    assert len(passes) <= 4
    assert max(passes) < calibrate.CHUNK_MAX


def test_of_large_activations_fewer_samples_are_counted_and_extremes_stay_exact(monkeypatch):
    x, _ = graphs.waves(200)
    whole = ranges_of(graphs.convolution(), x)
    monkeypatch.setattr(calibrate, "COUNTED_BYTES_MAX", 100_000)
    counted = []
    real = ranges.count
    monkeypatch.setattr(ranges, "count", lambda v, peak: counted.append(len(v)) or real(v, peak))
    parts = ranges_of(graphs.convolution(), x)
    names = len(parts.tensors)
    assert names <= sum(counted) < 200 * names
    for name, found in whole.tensors.items():
        assert parts.tensors[name].minmax == pytest.approx(found.minmax, abs=1e-5)
        assert parts.tensors[name].percentile == pytest.approx(found.percentile, rel=0.2, abs=0.3)


def test_inputs_of_weight_layers_keep_a_coarse_histogram():
    x, _ = graphs.waves(50)
    found = ranges_of(graphs.convolution(channels=8), x).tensors
    assert {name for name, each in found.items() if each.histogram} == {"image", "r", "f"}
    for name, values in (("image", 50 * 16), ("r", 50 * 8 * 16), ("f", 50 * 8)):
        assert len(found[name].histogram) == ranges.COARSE
        assert sum(found[name].histogram) == values
    assert sum(found["r"].histogram[: ranges.COARSE // 2]) == 0  # nothing is below zero
    assert found["image"].histogram[0] or found["image"].histogram[-1]  # one end is the peak


def test_rules_that_agree_differ_by_nothing():
    agree = ranges.Range((-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0))
    apart = ranges.Range((-1.0, 1.0), (-0.25, 0.25), (-1.0, 1.0))
    assert ranges.disagreement(agree) == 0.0
    assert ranges.disagreement(apart) == 0.75
    assert ranges.disagreement(ranges.Range((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))) == 0.0


def test_small_groups_of_tensors_give_the_same_ranges(monkeypatch):
    x, _ = graphs.waves(50)
    whole = ranges_of(graphs.convolution(), x)
    monkeypatch.setattr(calibrate, "GROUP_BYTES_MAX", 5000)
    parts = ranges_of(graphs.convolution(), x)
    for name, found in whole.tensors.items():
        assert parts.tensors[name].minmax == pytest.approx(found.minmax, abs=1e-5)
        assert parts.tensors[name].percentile == pytest.approx(found.percentile, rel=0.01, abs=0.01)


def test_a_fixed_batch_is_filled_up():
    x, _ = graphs.waves(100)
    contract = contract_of(graphs.classifier(batch=8))
    fed = list(calibrate.feeds({"x": x}, contract, 16))
    assert {len(feed["x"]) for feed in fed} == {8}
    assert len(fed) == 13  # 100 samples


def test_a_tensor_that_is_not_finite_is_named():
    model = graphs.model(
        [
            onnx.helper.make_node("Log", ["x"], ["l"]),
            onnx.helper.make_node("Relu", ["l"], ["y"]),
        ],
        [],
        outputs=("batch", graphs.LENGTH),
    )
    with pytest.raises(ValueError, match="tensor 'l' is not finite"):
        ranges_of(model, graphs.waves(20)[0])


def test_rules_cut_outliers_and_keep_what_is_dense():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0, 1, 200_000), [50.0, -40.0])
    counts = ranges.count(values, 50.0)
    found = ranges.bounds_of(-40.0, 50.0, counts, None)
    assert found.minmax == (-40.0, 50.0)
    for rule in (Calibration.ENTROPY, Calibration.PERCENTILE):
        low, high = found.by(rule)
        assert -8 < low < -2
        assert 2 < high < 8


def test_an_even_distribution_is_not_clipped_much():
    counts = ranges.count(np.linspace(-1, 1, 100_000), 1.0)
    low, high = ranges.bounds_of(-1.0, 1.0, counts, None).entropy
    assert low < -0.9
    assert high > 0.9


def test_a_tensor_that_is_always_zero_has_a_range():
    assert ranges.bounds_of(0.0, 0.0, None, None).entropy == (0.0, 0.0)


PEAK = """
import json, sys
from edgekit.build.quantizers import calibrate
from edgekit_runtime import process_facts
calibrate.main(sys.argv[1])
print(json.dumps(process_facts.peak_bytes() // 1024))
"""


def peak_kib(folder, model, n):
    x, _ = graphs.waves(n)
    npz.write(folder / "c.npz", {"x": x})
    request = calibrate.Request(
        model=str(model),
        data=str(folder / "c.npz"),
        contract=contract_of(onnx.load(model)),
        target=str(folder / "r.json"),
    )
    (folder / "request.json").write_bytes(codec.encode(request))
    command = [sys.executable, "-c", PEAK, str(folder / "request.json")]
    done = subprocess.run(command, capture_output=True, check=True)
    answer, peak = (json.loads(line) for line in done.stdout.splitlines())
    assert answer == {"error": None}
    assert codec.read(ranges.Ranges, folder / "r.json").n == n
    return peak


def test_memory_does_not_depend_on_the_number_of_samples(tmp_path):
    # 256 channels of 4 x 4: one sample's activations are 80 KiB, 4000 samples' 320 MB.
    model = graphs.save(graphs.convolution(channels=256), tmp_path / "m.onnx")
    few, many = peak_kib(tmp_path, model, 16), peak_kib(tmp_path, model, 2000)
    assert many < few + 20_000  # allocator noise, not 160 MB of activations


def test_ranges_survive_the_file():
    found = ranges_of(graphs.classifier(), graphs.waves(20)[0])
    assert msgspec.json.decode(codec.encode(found), type=ranges.Ranges) == found
