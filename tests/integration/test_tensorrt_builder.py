"""The Jetson variant's file through a real TensorRT parser and builder, which need no GPU.

TensorRT for RTX has no Orin among its GPUs, and its parser may differ from JetPack's: what it takes
is likely, not certain, to be taken there.
"""

import importlib.util
import os

import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import normalised, quantize, static

from edgekit.build.candidates import Ops, Scheme, candidates_for
from edgekit.build.steps.structure import structure_of
from edgekit.build.target import Activations, find
from edgekit.contracts.errors import BadInputError
from edgekit_runtime.engines import tensorrt_build

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None and not os.environ.get("CI"),
        reason="tensorrt-rtx-cu12 is not installed (in CI that is a failure)",
    ),
    # TensorRT proper has timing caches; here the calls do nothing, and say so.
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"),
]

X, _ = graphs.waves(100)


def build(path, timing=b""):
    import tensorrt_rtx

    def for_ampere(config):
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM86, 0)

    adapter = tensorrt_build.adapter_for("10.13.0")  # strongly typed, as TensorRT for RTX always is
    return tensorrt_build.build(tensorrt_rtx, adapter, path, timing=timing, configure=for_ampere)


@pytest.mark.parametrize("make", [graphs.convolution, graphs.classifier], ids=["conv", "dense"])
def test_every_jetson_candidate_is_parsed_and_built(tmp_path, make):
    model = normalised(make(), tmp_path)
    candidates = candidates_for(find("jetson-orin"), structure_of(model))
    assert len(candidates) > 1
    for candidate in candidates:
        made = model if candidate.unquantized else quantize(model, candidate, X)
        path = graphs.save(made, tmp_path / f"{candidate.name}.onnx")
        built = build(path)
        assert len(built.plan) > 1000
        assert len(build(path, built.timing).plan) > 1000


def test_what_tensorrt_does_not_take_is_one_error_with_its_reason(tmp_path):
    model = normalised(graphs.convolution(), tmp_path)
    asymmetric = quantize(model, static(Ops.WEIGHTS, Activations.U8), X)
    with pytest.raises(BadInputError, match=r"cannot parse this model: .*QuantizeLinear"):
        build(graphs.save(asymmetric, tmp_path / "u8.onnx"))


def test_sizes_that_are_not_fixed_are_named(tmp_path):
    model = graphs.relu()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    with pytest.raises(BadInputError, match=r"'x': shape .* is dynamic besides its batch"):
        build(graphs.save(model, tmp_path / "m.onnx"))


def test_the_form_for_jetson_is_not_the_one_for_other_targets(tmp_path):
    model = normalised(graphs.convolution(), tmp_path)
    made = quantize(model, static(scheme=Scheme.EXPLICIT, activations=Activations.S8), X)
    zeros = {node.input[2] for node in made.graph.node if "Linear" in node.op_type}
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    assert zeros
    assert not any(np.any(tensors[name]) for name in zeros)
