"""TensorRT: adapters by version, and the way down when an engine does not prove itself.

The real builder is in tests/integration/test_tensorrt_builder.py; no GPU has run any of this.
"""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit_runtime import engines
from edgekit_runtime.engines import ladder, tensorrt_build, tensorrt_engine
from edgekit_runtime.engines.ladder import Rung
from edgekit_runtime.errors import UnsuitableError


@pytest.mark.parametrize(
    ("version", "name", "typed", "flags"),
    [
        ("8.5.2", "8.x", False, ("INT8", "FP16")),
        ("8.6.2.3", "8.x", False, ("INT8", "FP16")),
        ("10.0.1", "10.0-10.11", False, ("INT8", "FP16")),
        ("10.3.0", "10.0-10.11", False, ("INT8", "FP16")),
        ("10.11.0", "10.0-10.11", False, ("INT8", "FP16")),
        ("10.12.0", "10.12+", True, ()),
        ("10.13.3", "10.12+", True, ()),
        ("11.4.1", "11", False, ()),
    ],
)
def test_each_version_is_asked_in_its_own_way(version, name, typed, flags):
    adapter = tensorrt_build.adapter_for(version)
    assert adapter.name == name
    assert ("STRONGLY_TYPED" in adapter.network_flags) is typed
    assert adapter.builder_flags == flags


@pytest.mark.parametrize("version", ["7.1.3", "8.2.1", "9.0", "12.0", "10", "new"])
def test_other_versions_are_refused(version):
    with pytest.raises(UnsuitableError, match="TensorRT"):
        tensorrt_build.adapter_for(version)


def test_an_engine_is_kept_for_what_it_binds_to_and_nothing_else():
    base = (b"model", "10.3.0", 87, "# R36 (release), REVISION: 4.0\n")
    others = [
        (b"other", *base[1:]),
        (base[0], "10.3.1", *base[2:]),
        (*base[:2], 110, base[3]),
        (*base[:3], "# R36 (release), REVISION: 4.3\n"),
    ]
    keys = {tensorrt_engine.cache_key(*each) for each in [base, *others]}
    assert len(keys) == 5
    assert tensorrt_engine.cache_key(*base[:3], base[3].strip()) in keys


def test_types_alone_are_no_engine():
    with pytest.raises(UnsuitableError, match=r"tensorrt: its library cannot be loaded"):
        engines.create("tensorrt")


class Model:
    input_names, output_names = ("x",), ("y",)

    def __init__(self, answer):
        self.answer, self.facts = answer, {"made": str(answer)}

    def run(self, inputs):
        return {"y": inputs["x"] + self.answer}


class Device:
    """Rungs whose models add a number; zero is right. A list is used up load by load."""

    def __init__(self, **answers):
        self.answers, self.loads, self.forgotten = answers, [], []

    def rungs(self):
        return [
            Rung(
                name,
                lambda name=name: self.load(name),
                lambda name=name: self.forgotten.append(name),
            )
            for name in self.answers
        ]

    def load(self, name):
        self.loads.append(name)
        answers = self.answers[name]
        answer = answers.pop(0) if isinstance(answers, list) else answers
        if isinstance(answer, Exception):
            raise answer
        return Model(answer)


def accept(model):
    right = not model.run({"x": np.zeros(3)})["y"].any()
    outcome = Outcome.PASS if right else Outcome.FAIL
    return Verdict(metric="golden_agreement", outcome=outcome, reason="0 of 3 samples agree")


def test_what_proves_itself_serves():
    device = Device(tensorrt=0, cuda=0, cpu=0)
    found = ladder.climb(device.rungs(), accept)
    assert found.facts == {"made": "0", "accelerator": "tensorrt"}
    assert found.run({"x": np.ones(1)})["y"] == 1
    assert device.loads == ["tensorrt"]


def test_a_kept_engine_that_answers_wrongly_is_built_once_more():
    device = Device(tensorrt=[1, 0], cpu=0)
    found = ladder.climb(device.rungs(), accept)
    assert found.facts["accelerator"] == "tensorrt"
    assert device.forgotten == ["tensorrt"]
    assert "0 of 3" in found.facts["refused"]


def test_the_way_down_is_told():
    device = Device(tensorrt=[1, 1], cuda=BadInputError("no such device"), cpu=0)
    found = ladder.climb(device.rungs(), accept)
    assert found.facts["accelerator"] == "cpu"
    assert "cuda: no such device" in found.facts["refused"]
    assert device.loads == ["tensorrt", "tensorrt", "cuda", "cpu"]


def test_without_a_golden_set_nothing_is_accelerated():
    device = Device(tensorrt=0, cpu=0)
    found = ladder.climb(device.rungs(), lambda _: None)
    assert found.facts["accelerator"] == "cpu"
    assert "no golden set" in found.facts["refused"]


def test_a_bundle_for_a_jetson_serves_without_one_and_says_why(tmp_path):
    from agentkit import layouts

    from edgekit.contracts.oci import LayoutReader
    from edgekit_runtime import bundles, predictor

    writer = layouts.LayoutWriter(tmp_path / "layout")
    name = writer.add(labels={"accelerate": "tensorrt"})
    bundle = bundles.open_bundle(LayoutReader(writer.root), name)
    found = predictor.load(bundle)
    assert found.model.facts["accelerator"] == "onnxruntime"
    assert "tensorrt: " in found.model.facts["refused"]
    assert "onnxruntime-tensorrt: " in found.model.facts["refused"]
    assert "onnxruntime-cuda: " in found.model.facts["refused"]
    assert found.replay_golden(bundle.golden).outcome is Outcome.PASS


def test_the_last_rung_speaks_for_itself():
    with pytest.raises(BadInputError, match="broken"):
        ladder.climb(Device(cpu=BadInputError("broken")).rungs(), accept)
