"""Normalising keeps what a model computes; each repair makes a real quantizer work."""

import numpy as np
import onnx
import onnxruntime
import pytest
from buildkit import graphs

from edgekit.build.candidates import Candidate, Ops
from edgekit.build.quantizers import ort_static
from edgekit.build.steps.normalise import OPSET, normalise
from edgekit.build.target import Activations
from edgekit.registry import graph, infer, npz


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


CASES = {
    "plain": {},
    "old opset": {"opset": 11},
    "weights as Constant nodes": {"constants": True},
    "bias of shape (1, N)": {"row_bias": True},
    "all at once": {"opset": 11, "constants": True, "row_bias": True},
}


def normalised(tmp_path, **options):
    source = graphs.save(graphs.classifier(**options), tmp_path / "m.onnx")
    notes = normalise(source, tmp_path / "n.onnx", tmp_path)
    return source, tmp_path / "n.onnx", notes


@pytest.mark.parametrize("case", CASES)
def test_normalised_model_computes_the_same(tmp_path, case):
    source, made, notes = normalised(tmp_path, **CASES[case])
    x, _ = graphs.waves(50)
    assert np.allclose(run(source, x), run(made, x), atol=1e-5)
    model = onnx.load(made)
    assert model.opset_import[0].version == OPSET
    assert not any(node.op_type == "Constant" for node in model.graph.node)
    assert notes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ops", list(Ops))
def test_every_normalised_form_can_be_quantized_per_channel(tmp_path, case, ops):
    _, made, _ = normalised(tmp_path, **CASES[case])
    request = request_for(tmp_path, made, ops)
    ort_static.quantize(request)
    x, labels = graphs.waves(300, seed=3)
    quantized = run(request.target, x)
    assert np.mean(quantized.argmax(1) == run(made, x).argmax(1)) > 0.97
    assert np.mean(quantized.argmax(1) == labels) > 0.9
    kinds = {node.op_type for node in onnx.load(request.target).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def request_for(tmp_path, path, ops=Ops.WEIGHTS, activations=Activations.U8):
    x, labels = graphs.waves(100)
    npz.write(tmp_path / "c.npz", {"x": x, "labels": labels})
    contract = infer.contract_of(graph.facts(graph.load(path), "m"), None).contract
    return ort_static.Request(
        model=str(path),
        target=str(tmp_path / f"q-{ops.value}-{activations.value}.onnx"),
        data=str(tmp_path / "c.npz"),
        contract=contract,
        candidate=Candidate(name="c", precision="int8", ops=ops, activations=activations),
    )


def test_activation_types_are_as_asked(tmp_path):
    _, made, _ = normalised(tmp_path)
    for activations, kind in ((Activations.U8, np.uint8), (Activations.S8, np.int8)):
        request = request_for(tmp_path, made, activations=activations)
        ort_static.quantize(request)
        model = onnx.load(request.target)
        weights = {t.name: t for t in model.graph.initializer}
        nodes = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
        zeros = [onnx.numpy_helper.to_array(weights[node.input[2]]).dtype for node in nodes]
        assert zeros
        assert all(dtype == kind for dtype in zeros)


def test_a_fixed_batch_is_filled_up(tmp_path):
    path = graphs.save(graphs.classifier(batch=8), tmp_path / "m.onnx")
    request = request_for(tmp_path, path)
    reader = ort_static.Reader(tmp_path / "c.npz", request.contract)
    feeds = list(iter(reader.get_next, None))
    assert {len(feed["x"]) for feed in feeds} == {8}
    assert len(feeds) == 13  # 100 samples


def test_a_model_without_weights_cannot_be_quantized_and_says_so(tmp_path):
    path = graphs.save(graphs.relu(), tmp_path / "m.onnx")
    with pytest.raises(ort_static.NothingToQuantizeError, match="constant weights"):
        ort_static.quantize(request_for(tmp_path, path))
