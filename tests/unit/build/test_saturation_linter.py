"""The linter bounds pair sums exactly, and only what can overflow loses a bit."""

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import normalised, quantize, ranges_of, run, static
from onnx import numpy_helper

from edgekit.build import saturation
from edgekit.build.candidates import Reduce

FULL = np.zeros(2), np.full(2, 255.0)


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((64, 64), False),  # 32640
        ((65, 63), False),
        ((65, 64), True),  # 32895
        ((127, 1), False),
        ((127, 2), True),
        ((127, -127), False),
        ((-64, -64), False),
        ((-65, -64), True),
    ],
)
def test_the_bound_is_exact(pair, expected):
    assert saturation.saturates(np.asarray([pair], float), *FULL) is expected
    brute = [255 * a + 255 * b for a in (pair[0], 0) for b in (pair[1], 0)]
    assert expected is (max(brute) > 32767 or min(brute) < -32768)


def test_inputs_that_stay_small_cannot_saturate():
    rows = np.asarray([[127.0, 127.0]])
    assert saturation.saturates(rows, np.zeros(2), np.asarray([129.0, 130.0]))
    assert not saturation.saturates(rows, np.zeros(2), np.asarray([128.0, 130.0]))


def test_a_crafted_model_is_caught_before_and_after_quantization(tmp_path):
    model, x, labels = graphs.adder()
    model = normalised(model, tmp_path)
    assert "sum" in saturation.layers(model, static(), ranges_of(model, x))
    careless = quantize(model, static(), x)
    assert "sum" in saturation.quantized_layers(careless)
    safe = quantize(model, static(reduce_range=Reduce.WHERE), x)
    assert saturation.quantized_layers(safe) == ()
    assert np.mean(run(safe, x).argmax(1) == labels) > 0.97


def weights_of(made):
    return {
        tensor.name: int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
        for tensor in made.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    }


@pytest.mark.parametrize("per_channel", [True, False])
def test_only_layers_that_can_saturate_lose_a_bit(tmp_path, per_channel):
    """Of two layers, one has neighbours of opposite sign: their products cancel."""
    alternating = np.where(np.arange(graphs.LENGTH) % 2, 1.0, -1.0).astype(np.float32)
    w1 = np.stack([alternating] * graphs.LENGTH, axis=1)
    w2 = np.ones((graphs.LENGTH, graphs.CLASSES), np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w1"], ["m"], name="one"),
        onnx.helper.make_node("Sigmoid", ["m"], ["s"]),
        onnx.helper.make_node("MatMul", ["s", "w2"], ["y"], name="two"),
    ]
    made = graphs.model(nodes, [numpy_helper.from_array(w, n) for w, n in ((w1, "w1"), (w2, "w2"))])
    model = normalised(made, tmp_path)
    x = np.abs(graphs.waves(100)[0])
    candidate = static(reduce_range=Reduce.WHERE, per_channel=per_channel)
    assert saturation.layers(model, candidate, ranges_of(model, x)) == ("two",)
    peaks = weights_of(quantize(model, candidate, x))
    assert sorted(peaks.values()) == [64, 127]


@pytest.mark.parametrize("made", [graphs.convolution(), graphs.classifier()], ids=["conv", "mlp"])
def test_what_the_linter_lets_pass_is_clean_on_the_artifact(tmp_path, made):
    model = normalised(made, tmp_path)
    x = graphs.waves(100)[0]
    candidate = static(reduce_range=Reduce.WHERE)
    risky = saturation.layers(model, candidate, ranges_of(model, x))
    careless = quantize(model, static(), x)
    assert set(risky) <= set(saturation.quantized_layers(careless))
    always = quantize(model, static(reduce_range=Reduce.ALWAYS), x)
    assert saturation.quantized_layers(always) == ()
