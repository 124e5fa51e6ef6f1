"""A model that saturates 16-bit sums: wrong on AVX2, right here; emulation and linter catch it."""

import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from buildkit import graphs
from buildkit.quantizing import quantize, static

from edgekit.build import emulate, gates, target
from edgekit.build.cache import Cache
from edgekit.build.host import Host
from edgekit.build.judge import compare
from edgekit.build.measure import Measurer, neutral
from edgekit.build.pipeline import build
from edgekit.build.study import Artifact, prepare
from edgekit.build.target import Gate, Validation
from edgekit.contracts import digest
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry.local import LocalRegistry
from edgekit.registry.register import Sources, register

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not shutil.which("qemu-x86_64") and not os.environ.get("CI"),
        reason="qemu-user is not installed (in CI that is a failure)",
    ),
]

# A build server that is no AVX2 machine itself, so that what it says comes from emulation only.
HOST = Host("x86_64", frozenset({"sse4_2"}), "test processor")


PROFILE = msgspec.structs.replace(
    target.find("x86-64-v3"),
    gates=(Gate.QUALITY, Gate.EMULATED),
    validation_required=Validation.EMULATED,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture(scope="module")
def model(place):
    made, x, labels = graphs.adder()
    path = graphs.save(made, place / "adder.onnx")
    np.savez(place / "adder.npz", x=x, labels=labels)
    registry = LocalRegistry(place / "registry")
    sources = Sources(data=str(place / "adder.npz"))
    return registry, register(registry, "adder", path, sources, drop_max=0.05).version


def test_the_emulated_gate_catches_what_the_build_host_does_not_see(model, place):
    registry, version = model
    study = prepare(registry, version, Cache(place / "cache"), place)
    _, x, _ = graphs.adder()
    careless = quantize(onnx.load(study.normalised.path), static(), x)
    path = graphs.save(careless, place / "careless.onnx")
    contract = neutral(version.contract)
    measurer = Measurer(Cache(place / "cache"), OciBundleWriter(), HOST, contract)

    def drop(artifact, emulator):
        name, size = digest.of_file(artifact)
        subject = measurer.subject(PROFILE, Artifact(artifact, name, size))
        run = measurer.measure(subject, study.evaluation, emulator=emulator)
        original = measurer.subject(PROFILE, study.original)
        before = measurer.measure(original, study.evaluation)
        n = study.evaluation_n
        labels = study.evaluation_labels
        pair = (before.outputs, run.outputs)
        return compare(version.contract, *pair, labels, rows=n, expected_n=n).drop

    emulator = emulate.find(PROFILE, HOST, place / "cache")
    # Only a build host without VNNI saturates itself, and sees natively what emulation shows here.
    vnni = {"avx512_vnni", "avx_vnni"} & set(Path("/proc/cpuinfo").read_text().split())
    assert not vnni or drop(path, None).estimate <= 0.05
    emulated = drop(path, emulator)
    assert emulated.estimate > 0.3  # it answers "no", always
    quality = version.contract.quality
    agrees = Verdict(metric="golden_agreement", outcome=Outcome.PASS, reason="")
    verdict = gates.emulated(emulated, agrees, quality, emulator.facts)
    assert verdict.outcome is Outcome.FAIL
    assert "-cpu Haswell" in verdict.reason


def test_the_linter_reduces_the_layer_and_emulation_agrees(model, place):
    registry, version = model
    record = build(
        registry,
        version,
        [PROFILE],
        place / "out",
        writer=OciBundleWriter(),
        cache=Cache(place / "cache"),
        host=HOST,
        time_budget_s=0.0,
    )
    variant = record.variants[0]
    entries = {entry.name: entry for entry in variant.candidates}
    assert "sum" in entries["int8-weights-u8-rr"].reduced
    assert variant.outcome is Outcome.PASS
    assert variant.precision == "int8"
    assert variant.validated == "emulated"
    assert "Haswell" in variant.emulated_on
    assert [v.metric for v in variant.verdicts] == ["top1_drop", "emulated_top1_drop", "validation"]


def test_without_an_emulator_the_gate_fails_closed(model, place, monkeypatch):
    registry, version = model
    monkeypatch.setenv("PATH", "/nonexistent")
    record = build(
        registry,
        version,
        [PROFILE],
        place / "none",
        writer=OciBundleWriter(),
        cache=Cache(place / "cache"),
        host=HOST,
        time_budget_s=0.0,
    )
    verdict = next(v for v in record.variants[0].verdicts if v.metric == "emulated_top1_drop")
    assert verdict.outcome is Outcome.FAIL
    assert "install qemu-user" in verdict.reason
    assert record.variants[0].validated == "none"
