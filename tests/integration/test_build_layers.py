"""A real build looks into what it chose: which layer is to blame, and where the time goes."""

import sys

import onnx
import pytest
from buildkit import graphs

from edgekit.build import layers, measure, target
from edgekit.build.cache import Cache
from edgekit.build.data import DataFile
from edgekit.build.host import Host
from edgekit.build.pipeline import build
from edgekit.build.quantizers import openvino_ir
from edgekit.build.record import RECORD_FILE, BuildRecord
from edgekit.build.report import REPORT_FILE
from edgekit.build.study import Artifact
from edgekit.cli.explain import describe
from edgekit.contracts import codec, digest
from edgekit.contracts.verdict import Outcome
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry.local import LocalRegistry
from edgekit.registry.register import Sources, register

pytestmark = pytest.mark.integration

HOST = Host("x86_64", frozenset({"avx2", "fma"}), "test processor")
TARGETS = ("x86-64-v3", "rpi5")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("layers")


@pytest.fixture(scope="module")
def registry(place):
    return LocalRegistry(place / "registry")


@pytest.fixture(scope="module")
def planted(registry, place):
    """With a budget that lets the smallest candidate through, bad layer and all."""
    path = graphs.save(graphs.sensitive(), place / "m.onnx")
    data = Sources(data=str(graphs.save_data(place / "d.npz")))
    return register(registry, "planted", path, data, drop_max=0.9).version


def run(registry, model, place, out):
    return build(
        registry,
        model,
        [target.find(name) for name in TARGETS],
        place / out,
        writer=OciBundleWriter(),
        cache=Cache(place / "cache"),
        host=HOST,
        time_budget_s=0.0,
    )


@pytest.fixture(scope="module")
def built(registry, planted, place):
    return run(registry, planted, place, "out")


def test_the_planted_layer_errs_most(built):
    variant = built.variant("rpi5")
    assert (variant.precision, variant.outcome) == ("int8", Outcome.PASS)
    found = variant.layers
    assert [layer.name for layer in found.layers] == ["l1", "l2", "l3", "l4"]
    worst, *others = found.ranked()
    assert worst.name == "l2"
    assert worst.own_error > 10 * max(layer.own_error for layer in others)
    assert found.samples == 16


def test_times_are_those_of_hardware_that_is_the_target(built):
    native, foreign = (built.variant(name).layers for name in TARGETS)
    assert native.unknown == ()
    assert None not in {t for layer in native.layers for t in (layer.us, layer.original_us)}
    assert {node.name for node in native.original_nodes} >= {"l1", "l2", "l3", "l4"}
    assert sum(node.us for node in native.nodes) > 0
    assert foreign.nodes == foreign.original_nodes == ()
    assert all(layer.us is layer.original_us is None for layer in foreign.layers)
    assert foreign.unknown == ("times: this machine does not count as the target",)


def test_record_report_and_explanation_have_it(built, place):
    assert codec.read(BuildRecord, place / "out" / RECORD_FILE) == built
    report = (place / "out" / REPORT_FILE).read_text()
    assert "The chosen variant layer by layer" in report
    assert "Inputs of weight layers over" in report
    rows = describe(built.variant("rpi5")).splitlines()
    begin = next(index for index, row in enumerate(rows) if row.startswith("LAYER  "))
    assert rows[begin + 1].split()[:2] == ["l2", "MatMul"]


def test_a_warm_rebuild_only_looks_up(built, registry, planted, place, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")  # nothing can be started
    assert run(registry, planted, place, "again") == built


def test_openvino_times_its_own_form(place, planted):
    """IR in two files beside the ONNX file it was made from, in one process."""
    model, ir = place / "m.onnx", place / "m.xml"
    found = openvino_ir.read(onnx.load(model), place)
    openvino_ir.save(found, ir, half=False)
    weights = ir.with_suffix(".bin")
    digests = tuple(digest.of_file(path)[0] for path in (ir, weights))
    artifacts = {
        "openvino": Artifact(ir, digests[0], 0, weights=weights, digests=digests),
        "onnxruntime": Artifact(model, digest.of_file(model)[0], 0),
    }
    subjects = [
        measure.Subject(tuple(artifact.contents()), artifact.digest, engine, ">=1.0")
        for engine, artifact in artifacts.items()
    ]
    data = DataFile(place / "x.npz", ["waves"], lambda: {"x": graphs.waves(16)[0]})
    measurer = measure.Measurer(
        Cache(place / "cache"), OciBundleWriter(), HOST, measure.neutral(planted.contract)
    )
    ours, others = measurer.node_times(subjects, data)
    for name in ("l1", "l2", "l3", "l4"):
        assert layers.time_of(name, ours) is not None
        assert layers.time_of(name, others) is not None
    assert "FullyConnected" in {node.op for node in ours}


def test_what_goes_wrong_is_said_and_fails_nothing(built, registry, planted, place, monkeypatch):
    for module, version in ((layers, "_VERSION"), (measure, "_TIMES_VERSION")):
        monkeypatch.setattr(module, version, 99)  # nothing of it is in the cache
    monkeypatch.setattr(layers, "_ERRORS", "edgekit.build.not_there")
    monkeypatch.setattr(measure, "_NODE_TIMES", "edgekit_runtime.not_there")
    record = run(registry, planted, place, "failed")
    assert record.outcome is Outcome.PASS
    for name in TARGETS:
        # What is in bundles does not depend on it.
        assert record.variant(name).digest == built.variant(name).digest
    native, foreign = (record.variant(name).layers for name in TARGETS)
    assert native.unknown[-1].startswith("times: cannot measure:")
    assert "not_there" in native.unknown[-1]
    assert foreign.unknown[0].startswith("errors:")
    assert "not_there" in foreign.unknown[0]
    assert all(layer.own_error is None for layer in foreign.layers)
