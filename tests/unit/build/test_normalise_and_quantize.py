"""Normalising keeps what a model computes, and names and lists what can be quantized."""

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import run

from edgekit.build.steps.normalise import OPSET, normalise

CASES = {
    "plain": {},
    "old opset": {"opset": 11},
    "weights as Constant nodes": {"constants": True},
    "bias of shape (1, N)": {"row_bias": True},
    "added bias of shape (1, N)": {"row_bias": True, "added_bias": True},
    "all at once": {"opset": 11, "constants": True, "row_bias": True},
}


def normalised(tmp_path, **options):
    source = graphs.save(graphs.classifier(**options), tmp_path / "m.onnx")
    notes, structure = normalise(source, tmp_path / "n.onnx", tmp_path)
    return source, tmp_path / "n.onnx", notes, structure


@pytest.mark.parametrize("case", CASES)
def test_normalised_model_computes_the_same(tmp_path, case):
    source, made, notes, structure = normalised(tmp_path, **CASES[case])
    x, _ = graphs.waves(50)
    assert np.allclose(run(source, x), run(made, x), atol=1e-5)
    model = onnx.load(made)
    assert model.opset_import[0].version == OPSET
    assert not any(node.op_type == "Constant" for node in model.graph.node)
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm"}
    assert {len(t.dims) for t in model.graph.initializer if t.name in biases} == {1}
    assert notes
    assert [layer.op for layer in structure.layers] == ["MatMul", "Gemm"]
    assert not structure.quantized
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_what_is_quantized_already_is_left_alone(tmp_path):
    source = graphs.save(graphs.prequantized(), tmp_path / "q.onnx")
    notes, structure = normalise(source, tmp_path / "n.onnx", tmp_path)
    assert structure.quantized
    assert notes == ["the model is quantized already: it is passed through unchanged"]
    assert [n.op_type for n in onnx.load(tmp_path / "n.onnx").graph.node] == [
        node.op_type for node in onnx.load(source).graph.node
    ]
