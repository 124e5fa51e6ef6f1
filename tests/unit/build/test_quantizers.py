"""Every quantizer on models with a known trap; the numbers are those of research on real models."""

import json

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import contract_of, kinds, normalised, quantize, run, static
from onnx import numpy_helper

from edgekit.build.candidates import Calibration, Candidate, Ops, Scheme
from edgekit.build.quantizers import base, ort_static, worker
from edgekit.build.quantizers.base import NothingToQuantizeError
from edgekit.build.target import Activations
from edgekit.contracts import codec

X, LABELS = graphs.waves(100)
DYNAMIC = Candidate(name="d", precision="int8", scheme=Scheme.DYNAMIC, ops=Ops.WEIGHTS)
STORED = Candidate(name="w", precision="w8", scheme=Scheme.WEIGHT_ONLY, ops=Ops.WEIGHTS)
FP16 = Candidate(name="h", precision="fp16", scheme=Scheme.FP16)
TRAPS = {
    "plain": {},
    "old opset, which has no per-channel attribute": {"opset": 11},
    "weights as Constant nodes": {"constants": True},
    "Gemm bias of shape (1, N)": {"row_bias": True},
    "added bias of shape (1, N)": {"row_bias": True, "added_bias": True},
    "all at once": {"opset": 11, "constants": True, "row_bias": True},
}
EVERY = [*(static(ops) for ops in Ops if ops is not Ops.CONV), DYNAMIC, STORED, FP16]


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("candidate", EVERY, ids=lambda c: f"{c.scheme.value}-{c.ops}")
def test_every_quantizer_gets_past_every_trap_and_keeps_the_answers(tmp_path, trap, candidate):
    model = normalised(graphs.classifier(**TRAPS[trap]), tmp_path)
    before = model.SerializeToString()
    made = quantize(model, candidate, X)
    assert model.SerializeToString() == before
    x, labels = graphs.waves(300, seed=3)
    quantized = run(made, x)
    assert np.mean(quantized.argmax(1) == run(model, x).argmax(1)) > 0.97
    assert np.mean(quantized.argmax(1) == labels) > 0.9


def test_the_operators_are_those_of_this_onnx_runtime():
    assert base.QUANTIZABLE_OPS == ort_static.REGISTERED_OPS


def test_a_worker_whose_time_is_over_ends_behind_the_job_in_hand(tmp_path, capsys):
    model = normalised(graphs.classifier(), tmp_path)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=X)
    jobs = tuple(
        worker.Job(each, str(tmp_path / f"{i}.onnx")) for i, each in enumerate((DYNAMIC, FP16))
    )
    for seconds, said in ((0.0, ["error", "stopped"]), (None, ["error", "error"])):
        request = worker.Request(
            model=str(tmp_path / "m.onnx"), ranges=None, data=str(tmp_path / "d.npz"),
            contract=contract_of(model), jobs=jobs, seconds=seconds,
        )  # fmt: skip
        (tmp_path / "r.json").write_bytes(codec.encode(request))
        worker.main(str(tmp_path / "r.json"))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [next(iter(line)) for line in lines] == said
        assert not any(line.get("error") for line in lines)


def sizes(model, tmp_path):
    return len(model.SerializeToString())


@pytest.mark.parametrize("candidate", [static(), DYNAMIC, STORED], ids=lambda c: c.scheme.value)
def test_weights_in_constant_nodes_do_shrink(tmp_path, candidate):
    model = normalised(graphs.classifier(constants=True, hidden=512), tmp_path)
    assert sizes(quantize(model, candidate, X), tmp_path) < 0.5 * sizes(model, tmp_path)


def test_dynamic_never_touches_a_convolution(tmp_path):
    model = normalised(graphs.convolution(), tmp_path)
    made = kinds(quantize(model, DYNAMIC))
    assert made.count("Conv") == 2
    assert "ConvInteger" not in made
    assert "MatMulInteger" in made


def test_dynamic_quantizes_an_lstm_that_static_leaves_alone(tmp_path):
    model = normalised(graphs.recurrent(), tmp_path)
    assert kinds(quantize(model, static(), X)).count("LSTM") == 1
    made = quantize(model, DYNAMIC)
    assert "DynamicQuantizeLSTM" in kinds(made)
    assert np.allclose(run(model, X), run(made, X), atol=0.1)


def test_operator_sets(tmp_path):
    model = normalised(graphs.convolution(), tmp_path)

    def quantized_layers(ops):
        made = quantize(model, static(ops), X)
        pairs = {n.output[0] for n in made.graph.node if n.op_type == "DequantizeLinear"}
        layers = [node for node in made.graph.node if node.op_type in {"Conv", "MatMul"}]
        return {node.name for node in layers if node.input[1] in pairs}

    names = [node.name for node in model.graph.node if node.op_type in {"Conv", "MatMul"}]
    assert quantized_layers(Ops.WEIGHTS) == quantized_layers(Ops.ALL) == set(names)
    assert quantized_layers(Ops.CONV) == set(names[:2])
    assert quantized_layers(Ops.BODY) == set(names[:-1])


def test_layers_can_be_kept_in_float_or_quantized_alone(tmp_path):
    model = normalised(graphs.convolution(), tmp_path)
    names = [node.name for node in model.graph.node if node.op_type in {"Conv", "MatMul"}]

    def weights(candidate):
        made = quantize(model, candidate, X)
        return sum(
            1
            for tensor in made.graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        )

    assert weights(static()) == 3
    assert weights(static(floats=(names[0],))) == 2
    assert weights(static(floats=tuple(names[:2]))) == 1
    assert weights(static(only=(names[1],))) == 1


@pytest.mark.parametrize("activations", list(Activations))
def test_activation_types_are_as_asked(tmp_path, activations):
    made = quantize(normalised(graphs.classifier(), tmp_path), static(activations=activations), X)
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    zeros = [tensors[n.input[2]] for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert zeros
    wanted = np.uint8 if activations is Activations.U8 else np.int8
    assert {zero.dtype for zero in zeros} == {np.dtype(wanted)}


def test_explicit_form_is_what_tensorrt_accepts(tmp_path):
    """Int8 with zero point 0 everywhere, bias in float, no Q/DQ behind weight layers."""
    model = normalised(graphs.convolution(), tmp_path)
    candidate = static(scheme=Scheme.EXPLICIT, activations=Activations.S8)
    made = quantize(model, candidate, X)
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    pairs = [n for n in made.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs
    for node in pairs:
        zero = tensors[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    assert tensors["b"].dtype == np.float32
    outputs = {n.output[0] for n in made.graph.node if n.op_type in {"Conv", "MatMul"}}
    assert not any(n.input[0] in outputs for n in pairs)
    per_channel = {tensors[n.input[1]].size for n in pairs if n.op_type == "DequantizeLinear"}
    assert max(per_channel) == 8
    # In float, as written: integer kernels of a processor without VNNI would saturate.
    assert np.allclose(run(model, X), run(made, X, plain=True), atol=0.1)


@pytest.mark.parametrize("rule", list(Calibration))
def test_calibration_rules_lead_to_working_models(tmp_path, rule):
    model = normalised(graphs.classifier(), tmp_path)
    made = quantize(model, static(calibration=rule), X)
    assert np.mean(run(made, X).argmax(1) == LABELS) > 0.9


def test_an_invalid_half_precision_model_is_an_error_with_its_text(tmp_path):
    """Cast to float inside the graph: converters leave it, and types contradict each other."""
    model = normalised(graphs.classifier(softmax=False), tmp_path)
    model.graph.node.append(
        onnx.helper.make_node("Cast", ["y"], ["half"], to=onnx.TensorProto.FLOAT16)
    )
    model.graph.node.append(onnx.helper.make_node("Identity", ["half"], ["z"]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.DOUBLE, ["batch", 3])
    )
    with pytest.raises(Exception, match=r"(?i)type"):
        quantize(model, FP16)


@pytest.mark.parametrize("candidate", [static(), DYNAMIC, STORED], ids=lambda c: c.scheme.value)
def test_a_model_without_weights_cannot_be_quantized_and_says_so(candidate):
    with pytest.raises(NothingToQuantizeError, match="constant weights"):
        quantize(graphs.relu(), candidate, X)


def test_a_result_optimised_for_one_cpu_never_leaves_the_worker(tmp_path, monkeypatch):
    class Layouter:
        def quantize(self, model, *_):
            model.graph.node[0].domain = "com.microsoft.nchwc"
            return model

    monkeypatch.setitem(worker.QUANTIZERS, Scheme.FP16, Layouter())
    with pytest.raises(ValueError, match="it runs on one CPU"):
        quantize(normalised(graphs.classifier(), tmp_path), FP16)
