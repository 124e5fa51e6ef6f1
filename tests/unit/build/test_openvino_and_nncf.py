"""IR for OpenVINO and NNCF's quantizer, through the worker and the device's own engine."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import contract_of, normalised, ranges_of, run, static
from onnx import TensorProto, helper

from edgekit.build.candidates import Candidate, Reduce, Scheme, in_openvino
from edgekit.build.quantizers import coverage, worker
from edgekit.build.steps import structure
from edgekit.build.target import Activations
from edgekit.contracts.errors import BadInputError
from edgekit_runtime import engines

X, LABELS = graphs.waves(100)
# Weights of 7 bits: whatever processor the tests run on, nothing saturates.
REDUCED = {"reduce_range": Reduce.ALWAYS}
NNCF = Candidate(name="n", precision="int8", scheme=Scheme.NNCF, **REDUCED)
FLOAT = Candidate(name="f", precision="fp32")
HALF = Candidate(name="h", precision="fp16", scheme=Scheme.FP16)


def made(model, candidate, folder, name="made", *, told=False):
    """What the worker writes: the file, or the graph of two; ``told``: what it says about it."""
    np.savez(folder / "data.npz", x=X)
    suffix = "xml" if candidate.engine.value == "openvino" else "onnx"
    target = folder / f"{name}.{suffix}"
    ranges = ranges_of(model, X) if candidate.needs_ranges else None
    request = worker.Request(
        model="", ranges=None, data=str(folder / "data.npz"), contract=contract_of(model), jobs=()
    )
    said = worker.make(model, ranges, request, worker.Job(candidate, str(target)))
    return said if told else target


def answers(path, x):
    """By the device's engine."""
    weights = path.with_suffix(".bin")
    model = engines.create("openvino").load(path, weights=weights)
    assert model.facts["inference_precision"] == "f32"
    return model.run({"x": x})["y"]


def size(path):
    return path.stat().st_size + path.with_suffix(".bin").stat().st_size


@pytest.mark.parametrize(
    ("candidate", "ratio", "near"),
    [(FLOAT, 1.1, 1e-5), (HALF, 0.6, 1e-2), (static(**REDUCED), 0.8, 0.1), (NNCF, 0.5, 0.1)],
    ids=["fp32", "fp16", "static", "nncf"],
)
def test_ir_is_smaller_answers_alike_and_is_the_same_each_time(tmp_path, candidate, ratio, near):
    model = normalised(graphs.classifier(hidden=1024), tmp_path)
    candidate = in_openvino(candidate)
    path = made(model, candidate, tmp_path)
    assert size(path) < ratio * len(model.SerializeToString())
    assert np.abs(answers(path, X) - run(model, X)).max() < near
    again = made(model, candidate, tmp_path, "again")
    for one, other in ((path, again), (path.with_suffix(".bin"), again.with_suffix(".bin"))):
        assert (
            hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
        )


def test_nncf_on_onnx_needs_the_overflow_fix_where_sums_saturate(tmp_path):
    model = normalised(graphs.classifier(hidden=256), tmp_path)
    peaks = {}
    for reduce in (Reduce.NEVER, Reduce.ALWAYS):
        candidate = Candidate(name="n", precision="int8", scheme=Scheme.NNCF, reduce_range=reduce)
        found = onnx.load(made(model, candidate, tmp_path, reduce.value))
        agreed = run(found, X).argmax(1) == run(model, X).argmax(1)
        assert agreed.mean() > 0.95
        weights = [onnx.numpy_helper.to_array(t) for t in found.graph.initializer]
        whole = [w.astype(np.int32) for w in weights if w.dtype == np.int8 and w.ndim > 1]
        peaks[reduce] = max(int(np.abs(w).max()) for w in whole)
    assert peaks[Reduce.NEVER] > 100
    assert peaks[Reduce.ALWAYS] <= 64


@pytest.mark.parametrize(
    ("candidate", "share"),
    [
        (static(), 1.0),
        (static(activations=Activations.S8, per_channel=False), 1.0),
        (in_openvino(static()), 1.0),
        # Made for TensorRT to fuse: ONNX Runtime would multiply most of it in float.
        (static(scheme=Scheme.EXPLICIT, activations=Activations.S8), 1 / 3),
    ],
    ids=["qdq", "qdq-pt", "openvino", "explicit"],
)
def test_the_engine_is_asked_what_it_runs_in_integers(tmp_path, candidate, share):
    model = normalised(graphs.convolution(), tmp_path)
    if candidate.scheme is Scheme.EXPLICIT:
        found = coverage.of_onnx(worker.quantize(model, candidate, ranges_of(model, X)), tmp_path)
    else:
        found = made(model, candidate, tmp_path, told=True)
    assert found == pytest.approx(share)


def test_attention_is_recognised_and_a_classifier_with_softmax_is_not(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "x"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"], axis=1),
    ]
    attention = graphs.model(nodes, [], outputs=(graphs.LENGTH, graphs.LENGTH))
    assert structure.structure_of(attention).attention
    assert not structure.structure_of(graphs.classifier()).attention
    assert not structure.structure_of(graphs.classifier(constants=True)).attention


def branches_of_two_ranks():
    """If whose branches differ in rank: OpenVINO wants to know the rank beforehand."""
    value = helper.make_tensor_value_info

    def branch(name, op, **attributes):
        node = helper.make_node(op, ["x"], [name], **attributes)
        return helper.make_graph([node], name, [], [value(name, TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["z"],
            then_branch=branch("a", "Identity"),
            else_branch=branch("b", "ReduceMean", keepdims=0),
        ),
        helper.make_node("Softmax", ["z"], ["y"], axis=-1),
    ]
    zero = onnx.numpy_helper.from_array(np.float32(0), "zero")
    return graphs.model(nodes, [zero], outputs=("batch", graphs.LENGTH))


def test_what_openvino_cannot_compile_is_an_error_not_a_file(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?i)rank|dynamic"):
        made(branches_of_two_ranks(), in_openvino(FLOAT), tmp_path)
    assert not list(tmp_path.glob("made*"))


def test_the_engine_says_what_it_cannot_load_and_caches_what_it_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv(engines.CACHE_ENV, str(tmp_path / "cache"))
    path = made(normalised(graphs.classifier(), tmp_path), in_openvino(FLOAT), tmp_path)
    loads = [
        engines.create("openvino").load(path, weights=path.with_suffix(".bin")) for _ in range(2)
    ]
    assert [each.facts["from_cache"] for each in loads] == ["false", "true"]
    assert np.array_equal(*(each.run({"x": X})["y"] for each in loads))
    for blob in (tmp_path / "cache" / "openvino").iterdir():
        blob.write_bytes(b"damaged")
    again = engines.create("openvino").load(path, weights=path.with_suffix(".bin"))
    assert np.array_equal(again.run({"x": X})["y"], loads[0].run({"x": X})["y"])
    (tmp_path / "bad.xml").write_text("<net")
    with pytest.raises(BadInputError, match=r"openvino .* cannot load this model"):
        engines.create("openvino").load(tmp_path / "bad.xml")
