"""How long operators take: the engine's own word, on the thread and with the options of devices."""

from __future__ import annotations

import numpy as np
import pytest
from agentkit.layouts import LayoutWriter
from buildkit import graphs
from buildkit.quantizing import contract_of

from edgekit_runtime import engines
from edgekit_runtime.engines import times
from edgekit_runtime.errors import EngineError, UnsuitableError
from edgekit_runtime.node_times import node_times


def test_means_leave_out_interruptions_and_what_takes_no_time():
    runs = [{("a", "Conv"): 3.0, ("gone", "Relu"): 0.0} for _ in range(20)]
    runs[4] = {("a", "Conv"): 900.0, ("gone", "Relu"): 50.0}
    runs[9] = {("a", "Conv"): 5.0, ("late", "Pad"): 1.0}
    (conv,) = times.means(runs)
    assert (conv.name, conv.op) == ("a", "Conv")
    assert conv.us == 3.0
    assert [node.name for node in times.means(runs[9:10])] == ["a", "late"]


def loaded(name, folder, channels=64):
    path = graphs.save(graphs.convolution(channels=channels), folder / "m.onnx")
    return engines.create(name, profile=folder).load(path)


@pytest.mark.parametrize(
    ("engine", "ops"),
    [("onnxruntime", {"Conv", "FusedConv"}), ("openvino", {"Convolution"})],
)
def test_an_engine_tells_the_layers_and_what_it_made_of_them(engine, ops, tmp_path):
    model = loaded(engine, tmp_path)
    x, _ = graphs.waves(24)
    for row in range(24):
        model.run({"x": x[row : row + 1]})
    nodes = model.node_times(4)
    assert all(node.us >= 0 for node in nodes)  # profilers count whole microseconds
    layers = [node for node in nodes if node.op in ops]
    assert [node.name.removesuffix("/WithoutBiases") for node in layers] == ["c1", "c2"]
    assert sum(node.us for node in nodes) > 0


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_run_has_no_times(engine, tmp_path):
    model = loaded(engine, tmp_path)
    model.run({"x": graphs.waves(1)[0]})
    with pytest.raises(EngineError, match="no run beyond the first 1"):
        model.node_times(1)


def test_an_engine_that_is_not_asked_says_so(tmp_path):
    with pytest.raises(UnsuitableError, match="tensorrt is not asked"):
        engines.create("tensorrt", profile=tmp_path)


def test_bundles_are_timed_as_devices_run_them(tmp_path):
    """Whatever the graph-optimization level of a bundle is: blocked layouts show as reorders."""
    made = graphs.convolution(channels=32)
    parts = {"files": {"model": made.SerializeToString()}, "found": contract_of(made)}
    writer = LayoutWriter(tmp_path)
    blocking = {"graph_optimization": "all"}
    plain, blocked = writer.add(**parts), writer.add(**parts, engine_options=blocking)
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    found = node_times(tmp_path, [plain, blocked], {"x": x})
    ops = [{node.op for node in nodes} for nodes in found]
    assert "ReorderOutput" not in ops[0]
    assert "ReorderOutput" in ops[1]
