"""What was seen to break other tools on real models, where no other file here has a test for it.

Old opsets, weights in Constant nodes, biases of shape (1, N), dynamic Conv, LSTM, and invalid half
precision: `test_quantizers`. If in OpenVINO: `test_openvino_and_nncf`. Memory of calibration:
`test_calibration`. Calibration that is not like the field: `test_representative` and
`tests/integration/test_build_slices.py`.
"""

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import contract_of, kinds, ranges_of, session, static

from edgekit.build.candidates import CONVOLUTIONS, Candidate, Ops, Reduce, Scheme, in_openvino
from edgekit.build.quantizers import worker
from edgekit.build.steps.normalise import normalise
from edgekit_runtime import engines

RNG = np.random.default_rng(0)
TRANSFORMER = Candidate(
    name="n", precision="int8", scheme=Scheme.NNCF, reduce_range=Reduce.ALWAYS, transformer=True
)


def cosine(a, b):
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("ops", [Ops.WEIGHTS, Ops.ALL], ids=lambda ops: ops.value)
def test_open_shapes_are_quantized_and_stay_open(tmp_path, ops):
    onnx.save(graphs.any_size(), tmp_path / "source.onnx")
    notes, structure = normalise(tmp_path / "source.onnx", tmp_path / "m.onnx", tmp_path)
    assert not any("left without" in note for note in notes), notes
    assert {layer.op for layer in structure.layers} >= CONVOLUTIONS & {"Conv"}
    model = onnx.load(tmp_path / "m.onnx")
    seen = RNG.normal(size=(40, 1, 12, 20)).astype(np.float32)
    made = worker.quantize(model, static(ops, reduce_range=Reduce.ALWAYS), ranges_of(model, seen))
    assert "DequantizeLinear" in kinds(made)
    quantized, float_ = session(made), session(model)
    for height, width in ((12, 20), (9, 33)):  # another size than calibration's, too
        x = RNG.normal(size=(5, 1, height, width)).astype(np.float32)
        found, wanted = quantized.run(None, {"x": x})[0], float_.run(None, {"x": x})[0]
        assert cosine(found, wanted).min() > 0.98


@pytest.mark.parametrize("openvino", [False, True], ids=["onnx", "openvino"])
def test_a_transformer_keeps_its_answers_when_it_is_quantized_as_one(tmp_path, openvino):
    onnx.save(graphs.attention(), tmp_path / "source.onnx")
    _, structure = normalise(tmp_path / "source.onnx", tmp_path / "m.onnx", tmp_path)
    assert structure.attention
    model = onnx.load(tmp_path / "m.onnx")
    x = RNG.normal(size=(64, 8, 32)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    request = worker.Request(
        model="", ranges=None, data=str(tmp_path / "data.npz"), contract=contract_of(model), jobs=()
    )
    candidate = in_openvino(TRANSFORMER) if openvino else TRANSFORMER
    target = tmp_path / ("made.xml" if openvino else "made.onnx")
    worker.make(model, None, request, worker.Job(candidate, str(target)))
    fresh = RNG.normal(size=(64, 8, 32)).astype(np.float32)
    if openvino:
        loaded = engines.create("openvino").load(target, weights=target.with_suffix(".bin"))
        found = loaded.run({"x": fresh})["y"]
    else:
        found = session(target).run(None, {"x": fresh})[0]
    assert cosine(found, session(model).run(None, {"x": fresh})[0]).mean() > 0.97
