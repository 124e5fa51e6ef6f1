"""Layer by layer: the layer that is to blame has the error, whatever it spoils behind it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import contract_of, normalised, quantize, static
from onnx import helper, numpy_helper

from edgekit.build import target
from edgekit.build.candidates import Candidate, Engine, Layer, Ops, Scheme, Structure
from edgekit.build.host import Host
from edgekit.build.layers import Inspector, time_of
from edgekit.build.quantizers import layer_errors
from edgekit.build.quantizers.layer_errors import LayerErrors, errors_of
from edgekit.build.record import LayerRecord
from edgekit.build.target import Activations
from edgekit.contracts import codec
from edgekit.contracts.evaluation import NodeTime
from edgekit.registry import npz

KINDS = {
    "static": static(),
    "all": static(Ops.ALL),  # merges Relu into the layer before it, and renames what it gives
    "tensorrt": static(scheme=Scheme.EXPLICIT, activations=Activations.S8),
    "dynamic": Candidate(name="d", precision="int8", scheme=Scheme.DYNAMIC, ops=Ops.WEIGHTS),
    "weights": Candidate(name="w", precision="w8", scheme=Scheme.WEIGHT_ONLY, ops=Ops.WEIGHTS),
}
X, _ = graphs.waves(60)
FEEDS = [{"x": X[row : row + 1]} for row in range(8)]


def found(model, variant, feeds=FEEDS):
    return {each.name: each for each in errors_of(model, variant, feeds)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_planted_layer_alone_is_to_blame_and_those_behind_it_inherit(kind, tmp_path):
    model = normalised(graphs.sensitive(), tmp_path)
    errors = found(model, quantize(model, KINDS[kind], X))
    assert list(errors) == ["l1", "l2", "l3", "l4"]
    assert errors["l2"].own_error > 0.9
    assert all(errors[name].own_error < 0.03 for name in ("l1", "l3", "l4"))
    assert all(errors[name].error > 0.9 for name in ("l2", "l3", "l4"))
    assert errors["l1"].error == pytest.approx(errors["l1"].own_error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [graphs.convolution, graphs.attention], ids=["conv", "attention"])
def test_layers_of_every_kind_are_found(make, kind, tmp_path):
    model = normalised(make(), tmp_path)
    shape = [dim.dim_value or 60 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    feeds = [{"x": x[row : row + 1]} for row in range(4)]
    errors = found(model, quantize(model, KINDS[kind], x), feeds)
    assert len(errors) == len([n for n in model.graph.node if n.op_type in {"Conv", "MatMul"}]) - (
        2 if make is graphs.attention else 0  # that multiply activations
    )
    assert all(each.own_error is not None and each.own_error < 0.1 for each in errors.values())


def test_half_precision_takes_half_precision_inputs(tmp_path):
    model = normalised(graphs.convolution(), tmp_path)
    half = Candidate(name="h", precision="fp16", scheme=Scheme.FP16)
    errors = found(model, quantize(model, half))
    assert all(0 < each.own_error < 0.002 for each in errors.values())


def test_the_error_is_relative_l2(tmp_path):
    """Weights a tenth larger: so are the outputs, each of them."""
    model = normalised(graphs.classifier(softmax=False), tmp_path)
    variant = onnx.ModelProto()
    variant.CopyFrom(model)
    first = next(tensor for tensor in variant.graph.initializer if tensor.name == "first")
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * np.float32(1.1), "first"))
    layer, head = errors_of(model, variant, FEEDS)
    assert layer.error == pytest.approx(0.1, rel=1e-4)
    assert (head.error, head.own_error) == (pytest.approx(0.1, rel=1e-3), 0.0)


def test_a_layer_without_its_tensors_is_not_known(tmp_path):
    """Another name for what comes out, or goes in: nothing is guessed."""
    model = normalised(graphs.classifier(), tmp_path)
    variant = onnx.ModelProto()
    variant.CopyFrom(model)
    for node in variant.graph.node:
        for names in (node.input, node.output):
            names[:] = [
                "other" if name == "m" else "input" if name == "f" else name for name in names
            ]
    first, head = errors_of(model, variant, FEEDS)
    assert (first.error, first.own_error) == (None, None)
    assert (head.error, head.own_error) == (0.0, None)


def test_a_layer_that_a_loop_feeds_is_not_taken_apart(tmp_path):
    model = normalised(graphs.classifier(), tmp_path)
    variant = onnx.ModelProto()
    variant.CopyFrom(model)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["f"], ["same"])], "b", [], [onnx.ValueInfoProto(name="same")]
    )
    always = numpy_helper.from_array(np.asarray(True), "always")
    variant.graph.initializer.append(always)
    chosen = helper.make_node(
        "If", ["always"], ["chosen"], then_branch=branch, else_branch=branch, name="if"
    )
    head = next(index for index, node in enumerate(variant.graph.node) if "head" in node.input)
    variant.graph.node[head].input[0] = "chosen"
    variant.graph.node.insert(head, chosen)
    _, layer = errors_of(model, variant, FEEDS)
    assert (layer.error, layer.own_error) == (0.0, None)


def run(tmp_path, variant, n=60):
    model = graphs.save(normalised(graphs.classifier(), tmp_path), tmp_path / "m.onnx")
    npz.write(tmp_path / "x.npz", {"x": X[:n]})
    request = {
        "model": model,
        "variant": variant,
        "data": tmp_path / "x.npz",
        "contract": contract_of(onnx.load(model)),
    }
    (tmp_path / "request.json").write_bytes(codec.encode(request))
    command = [sys.executable, "-m", layer_errors.__name__, str(tmp_path / "request.json")]
    done = subprocess.run(command, capture_output=True, check=True)
    return codec.decode(LayerErrors, done.stdout, what="answer")


def test_the_process_says_over_how_many_samples_and_what_failed(tmp_path):
    assert run(tmp_path, tmp_path / "m.onnx").samples == layer_errors.SAMPLES_MAX
    assert run(tmp_path, tmp_path / "m.onnx", n=5).samples == 5
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    answer = run(tmp_path, tmp_path / "broken.onnx")
    assert answer.layers == ()
    assert answer.error.startswith("DecodeError")


def test_samples_end_with_the_time_but_for_the_first(monkeypatch):
    monkeypatch.setattr(layer_errors, "SECONDS_MAX", -1.0)
    some = layer_errors.Some(iter(FEEDS), 4)
    assert list(some) == FEEDS[:1]
    assert some.taken == 1


def test_times_belong_to_the_layer_of_that_name_and_no_other():
    nodes = [
        NodeTime(name=name, op="MatMul", us=us)
        for name, us in (("l1", 1.0), ("l1_quant", 2.0), ("l10", 4.0), ("l1_Relu", 8.0))
    ]
    assert time_of("l1", nodes) == 3.0
    assert time_of("l10", nodes) == 4.0
    assert time_of("l2", nodes) is None


class Unmeasured:
    """Whoever asks for a process has not understood that nothing can be known."""

    def is_real(self, _target):
        return False

    def __getattr__(self, name):
        raise AssertionError(name)


def test_ir_is_not_compared_and_another_machine_times_nothing():
    candidate = Candidate(name="ov-fp16", precision="fp16", engine=Engine.OPENVINO)
    trial = SimpleNamespace(
        artifact=SimpleNamespace(digest="d"), figures=SimpleNamespace(candidate=candidate)
    )
    structure = Structure(layers=(Layer("l1", "Conv"),), ops=("Conv",), quantized=False)
    inspector = Inspector(
        SimpleNamespace(structure=structure),
        Unmeasured(),
        Host("x86_64", frozenset(), "test processor"),
        Path("nowhere"),
        lambda _: None,
    )
    profile = target.find("x86-64-v3-openvino")
    found = inspector.inspect(profile, SimpleNamespace(trial=trial))
    assert found.layers == (LayerRecord(name="l1", op="Conv"),)
    assert [why.partition(":")[0] for why in found.unknown] == ["errors", "times"]
    assert "OpenVINO IR" in found.unknown[0]
