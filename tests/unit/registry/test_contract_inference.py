"""Contracts: derived from the graph, and refused where they contradict it."""

import msgspec
import numpy as np
import onnx
import pytest
from buildkit import graphs
from onnx import TensorProto, helper, numpy_helper

from edgekit.contracts.contract import OutputSpec, Task, Transpose
from edgekit.contracts.errors import BadInputError
from edgekit.registry import graph, infer


def facts(model):
    return graph.facts(model, "m.onnx")


def inferred(model, labels=None, **options):
    return infer.contract_of(facts(model), labels, **options)


def test_softmax_with_labels_is_top1():
    result = inferred(graphs.classifier(), np.asarray([0, 1, 2]))
    assert result.contract.quality.metric == "top1"
    assert result.contract.inputs[0].shape == ("batch", graphs.LENGTH)
    assert result.contract.outputs[0].task is Task.CLASSIFICATION
    assert any("softmax" in sentence for sentence in result.assumptions)


def test_classifier_without_labels_is_compared_with_the_original():
    assert inferred(graphs.classifier()).contract.quality.metric == "agreement"


def test_logits_count_as_classes_only_when_labels_fit():
    logits = graphs.classifier(softmax=False)
    assert inferred(logits, np.asarray([0, 2])).contract.quality.metric == "top1"
    odd = inferred(logits, np.asarray([0, 3]))
    assert odd.contract.quality.metric == "cosine"
    assert any("labels are not used" in sentence for sentence in odd.assumptions)


def test_a_given_budget_is_not_an_assumption():
    result = inferred(graphs.classifier(), drop_max=0.05)
    assert result.contract.quality.drop_max == 0.05
    assert not any("may drop" in sentence for sentence in result.assumptions)


def change(contract, **fields):
    return msgspec.structs.replace(contract, **fields)


def first(contract, **fields):
    return change(contract, inputs=(change(contract.inputs[0], **fields),))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: first(c, name="z"),
            "inputs.z is not in the graph; inputs.x is in the graph only",
        ),
        (lambda c: first(c, dtype="int64"), "inputs.x.dtype is int64, the graph's is float32"),
        (lambda c: first(c, shape=("batch", 17)), r"inputs.x.shape\[1\] is 17, the graph's is 16"),
        (lambda c: first(c, shape=("batch",)), "inputs.x.shape has 1 dimensions"),
        (lambda c: first(c, preprocess=(Transpose(order=(0, 2)),)), "inputs.x.preprocess"),
        (
            lambda c: change(c, outputs=(change(c.outputs[0], labels=("a", "b")),)),
            "outputs.y.labels has 2 names for 3 classes",
        ),
        (
            lambda c: change(c, outputs=(*c.outputs, OutputSpec(name="q", dtype="f", shape=(1,)))),
            "outputs.q is not in the graph",
        ),
        (lambda c: change(c, quality=change(c.quality, metric="f1")), "quality.metric: 'f1'"),
        (lambda c: change(c, quality=change(c.quality, drop_max=-1.0)), "quality.drop_max"),
    ],
)
def test_contradictions_name_the_field(edit, message):
    model = graphs.classifier()
    contract = inferred(model).contract
    assert infer.check_against_graph(contract, facts(model)) == contract
    with pytest.raises(BadInputError, match=message):
        infer.check_against_graph(edit(contract), facts(model))


def saved(tmp_path, model):
    return graphs.save(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x00" * 40, bytes(range(256))])
def test_other_bytes_are_not_onnx(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BadInputError, match="not an ONNX file"):
        graph.load(tmp_path / "m.onnx")


def test_truncated_model_is_refused(tmp_path):
    path = saved(tmp_path, graphs.classifier())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInputError, match=r"m\.onnx"):
        graph.load(path)


def test_custom_domains_are_named(tmp_path):
    node = helper.make_node("Magic", ["x"], ["y"], domain="acme.ops")
    model = graphs.model([node], [], domains=("acme.ops",))
    with pytest.raises(BadInputError, match=r"custom domains: acme\.ops"):
        graph.load(saved(tmp_path, model))


@pytest.mark.parametrize("constants", [False, True], ids=["initializer", "Constant node"])
@pytest.mark.parametrize(("value", "named"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_weights_that_are_no_numbers_are_named(tmp_path, value, named, constants):
    model = graphs.classifier(constants=constants)
    held = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    tensor = [*held, *model.graph.initializer][0]
    broken = numpy_helper.to_array(tensor).copy()
    broken[0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))
    with pytest.raises(BadInputError, match=f"weight 'first' holds {named}"):
        graph.load(saved(tmp_path, model))


def test_infinity_in_a_mask_is_how_it_says_never(tmp_path):
    mask = numpy_helper.from_array(np.full((1, graphs.LENGTH), -np.inf, np.float32), "mask")
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"], axis=-1),
    ]
    model = graphs.model(nodes, [mask], outputs=("batch", graphs.LENGTH))
    assert graph.load(saved(tmp_path, model)).graph.node


def test_external_data_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(
        graphs.classifier(), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    with pytest.raises(BadInputError, match="another file"):
        graph.load(path)


def test_outputs_that_are_no_tensors_are_refused():
    model = graphs.relu()
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1]))
    with pytest.raises(BadInputError, match="'y' is a sequence"):
        facts(model)
