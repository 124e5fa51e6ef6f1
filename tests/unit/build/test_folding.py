"""Preprocessing that becomes part of the graph answers as preprocessing before it does."""

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import session
from onnx import TensorProto, helper

from edgekit import preprocess
from edgekit.build.steps.fold import fold
from edgekit.build.steps.normalise import normalise
from edgekit.contracts.contract import InputSpec, Normalise, Transpose
from edgekit.contracts.errors import BadInputError

CHANNELS = Normalise(mean=(120.0, 110.0, 100.0), std=(60.0, 61.0, 62.0))
TO_CHANNELS_FIRST = Transpose(order=(0, 3, 1, 2))
BYTES = InputSpec(
    name="x", dtype="uint8", shape=("batch", 6, 5, 3), preprocess=(CHANNELS, TO_CHANNELS_FIRST)
)
LEVEL = InputSpec(
    name="x",
    dtype="float32",
    shape=("batch", graphs.LENGTH),
    preprocess=(Normalise(mean=(0.3,), std=(1.7,)),),
)
RNG = np.random.default_rng(0)


def images() -> onnx.ModelProto:
    kernel = onnx.numpy_helper.from_array(RNG.normal(size=(4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("ReduceMean", ["c"], ["y"], axes=[2, 3], keepdims=0),
    ]
    return graphs.model(nodes, [kernel], inputs=("batch", 3, 6, 5), outputs=("batch", 4))


def branching() -> onnx.ModelProto:
    """The bodies of If read ``x`` from outside."""
    value = helper.make_tensor_value_info

    def body(name, op):
        node = helper.make_node(op, ["x"], [name])
        return helper.make_graph([node], name, [], [value(name, TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], then_branch=body("a", "Relu"), else_branch=body("b", "Abs")
        ),
    ]
    zero = onnx.numpy_helper.from_array(np.float32(0), "zero")
    return graphs.model(nodes, [zero], outputs=("batch", graphs.LENGTH))


@pytest.mark.parametrize(
    ("model", "spec", "steps"),
    [(images, BYTES, 2), (graphs.classifier, LEVEL, 1), (branching, LEVEL, 1)],
    ids=["images", "numbers", "branches"],
)
def test_the_same_answers_to_the_last_bit(model, spec, steps):
    made = model()
    shape = [7, *spec.shape[1:]]
    raw = RNG.integers(0, 256, shape).astype(spec.dtype)
    wanted = session(made, plain=True).run(
        None, {"x": np.ascontiguousarray(preprocess.apply(spec.preprocess, raw))}
    )
    assert fold(made, [spec]) == steps
    onnx.checker.check_model(made, full_check=True)
    found = session(made, plain=True).run(None, {"x": raw})
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    (taken,) = session(made).get_inputs()
    assert (taken.name, taken.shape) == ("x", list(spec.shape))


def test_an_input_that_is_an_output_too_is_refused():
    made = graphs.classifier()
    made.graph.output.append(made.graph.input[0])
    with pytest.raises(BadInputError, match="'x' is input and output of the graph"):
        fold(made, [LEVEL])


def test_what_declares_nothing_stays_as_it_is():
    made = graphs.classifier()
    before = made.SerializeToString()
    plain = InputSpec(name="x", dtype="float32", shape=("batch", graphs.LENGTH))
    assert fold(made, [plain]) == 0
    assert made.SerializeToString() == before


def test_a_quantized_model_is_not_touched(tmp_path):
    onnx.save(graphs.prequantized(), tmp_path / "q.onnx")
    notes, structure = normalise(tmp_path / "q.onnx", tmp_path / "n.onnx", tmp_path, [LEVEL])
    assert structure.quantized
    assert not any("preprocessing" in note for note in notes)
