"""Models as torch, scikit-learn, TensorFlow and PaddlePaddle export them, through whole builds."""

from pathlib import Path

import numpy as np
import pytest
from buildkit import graphs

from edgekit.build import target
from edgekit.build.cache import Cache
from edgekit.build.host import Host
from edgekit.build.pipeline import build
from edgekit.contracts.verdict import Outcome
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry import graph
from edgekit.registry.local import LocalRegistry
from edgekit.registry.register import Sources, register

pytestmark = pytest.mark.integration
EXPORTED = Path(__file__).parents[1] / "exported"
HOST = Host("x86_64", frozenset({"avx2", "fma"}), "test processor")


@pytest.mark.parametrize("exporter", ["torch", "skl2onnx", "tf2onnx", "paddle2onnx"])
def test_an_exported_model_is_quantized_and_keeps_its_answers(tmp_path, exporter):
    source = EXPORTED / f"{exporter}.onnx"
    (taken,) = graph.facts(graph.load(source), exporter).inputs
    x, labels = graphs.waves(900)
    np.savez(tmp_path / "d.npz", **{taken.name: x}, labels=labels)
    registry = LocalRegistry(tmp_path / "registry")
    data = Sources(data=str(tmp_path / "d.npz"))
    model = register(registry, exporter, source, data, drop_max=0.05).version
    record = build(
        registry, model, [target.find("rpi5")], tmp_path / "out",
        writer=OciBundleWriter(), cache=Cache(tmp_path / "cache"), host=HOST, time_budget_s=0.0,
    )  # fmt: skip
    variant = record.variant("rpi5")
    assert variant.outcome is Outcome.PASS
    assert variant.original_quality > 0.97
    static = next(entry for entry in variant.candidates if entry.name == "int8-weights-s8")
    assert static.outcome != "dropped", static.reason
    assert static.coverage >= 2 / 3  # x86 has no integer Gemm for signed activations, ARM has
    assert abs(static.quality_drop) < 0.05
    assert not [note for note in record.normalised if "cannot be" in note or "left without" in note]
