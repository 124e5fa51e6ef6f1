"""The whole build on small real models: real quantizer, real evaluation processes, real bundles."""

import sys

import msgspec
import numpy as np
import onnx
import pytest
from buildkit import graphs
from onnx import helper, numpy_helper

from edgekit.build import target
from edgekit.build.cache import Cache
from edgekit.build.host import Host
from edgekit.build.pipeline import build
from edgekit.build.record import RECORD_FILE, BuildRecord
from edgekit.contracts import codec
from edgekit.contracts.bundle import BundleManifest, Role
from edgekit.contracts.contract import Budget, Contract, Normalise
from edgekit.contracts.errors import BadInputError, GateFailedError, ResourceError, UsageError
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.reference import Reference, validate
from edgekit.contracts.verdict import Outcome
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry import graph, infer
from edgekit.registry.local import LocalRegistry
from edgekit.registry.model import Split
from edgekit.registry.register import Sources, register
from edgekit.stats import probes
from edgekit.stats.bins import CONFIDENCE_BINS

pytestmark = pytest.mark.integration

# An AVX2 machine without VNNI, whatever these tests run on: x86-64-v3 counts as native here.
HOST = Host("x86_64", frozenset({"avx2", "fma"}), "test processor")
TARGETS = ("x86-64-v3", "rpi5")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def registry(place):
    return LocalRegistry(place / "registry")


@pytest.fixture(scope="module")
def cache(place):
    return Cache(place / "cache")


def add(registry, folder, model, name="waves", **options):
    path = graphs.save(model, folder / f"{name}.onnx")
    data = graphs.save_data(folder / f"{name}.npz")
    return register(registry, name, path, Sources(data=str(data)), **options).version


@pytest.fixture(scope="module")
def waves(place, registry):
    # Wide enough that int8 is smaller than fp32 in spite of the nodes it adds.
    return add(registry, place, graphs.classifier(hidden=256), card="# Waves\n")


def run(registry, model, out, cache, names=TARGETS, **options):
    profiles = [target.find(name) for name in names]
    return build(
        registry,
        model,
        profiles,
        out,
        writer=OciBundleWriter(),
        cache=cache,
        host=HOST,
        time_budget_s=0.0,  # the search has tests of its own
        **options,
    )


@pytest.fixture(scope="module")
def built(place, registry, waves, cache):
    steps = []
    record = run(registry, waves, place / "out", cache, on_progress=steps.append)
    return record, place / "out", steps


def bundle_of(layout, reference):
    reader = LayoutReader(layout)
    manifest = reader.manifest(reader.resolve(reference))
    config = codec.decode(
        BundleManifest, reader.read_blob(manifest.config.digest, bytes_max=1 << 20), what="config"
    )
    files = {
        entry.path: reader.read_blob(entry.sha256, bytes_max=1 << 24) for entry in config.files
    }
    return config, files


def tree(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != RECORD_FILE
    }


def test_every_target_gets_a_bundle_that_passed_its_declared_gates(built):
    record, out, _ = built
    assert record.outcome is Outcome.PASS
    native, foreign = record.variant("x86-64-v3"), record.variant("rpi5")
    assert [v.metric for v in foreign.verdicts] == [
        "top1_drop",
        "size_bytes",
    ]
    assert {v.metric for v in native.verdicts} == {
        "top1_drop",
        "size_bytes",
        "golden_agreement",
        "latency_ms_p50",
        "validation",
    }
    assert (native.validated, foreign.validated) == ("native", "none")
    assert native.latency_ms > 0
    assert native.original_latency_ms > 0
    assert foreign.latency_ms is None
    assert foreign.original_latency_ms is None
    assert all(entry.latency_ms is None for entry in foreign.candidates)
    for variant in record.variants:
        assert variant.quality_drop <= variant.quality_drop_upper <= 0.02
        assert variant.quality > 0.9
        assert variant.evaluation_samples == record.samples["evaluation"]
        assert variant.repository == "waves"
        reader = LayoutReader(out)
        assert reader.resolve(f"waves-1-{variant.target}") == variant.digest
        manifest = reader.manifest(variant.digest)
        listed = sum(d.size for d in (manifest.config, *manifest.layers))
        stored = reader.blob_path(variant.digest).stat().st_size
        assert variant.bundle_bytes == listed + stored
    assert codec.read(BuildRecord, out / RECORD_FILE) == record


def test_int8_wins_where_it_is_smaller_and_every_candidate_has_a_reason(built):
    record, _, _ = built
    foreign = record.variant("rpi5")
    assert foreign.precision == "int8"
    assert foreign.size_bytes < 0.7 * foreign.original_size_bytes
    names = [entry.name for entry in foreign.candidates]
    assert names == ["fp32", "int8-weights-s8"]  # without time for a search
    assert any(entry.pareto for entry in foreign.candidates)
    assert [entry.outcome for entry in foreign.candidates].count("chosen") == 1
    assert all(entry.reason for entry in foreign.candidates)


def test_bundle_holds_what_the_device_needs(built, waves):
    record, out, _ = built
    config, files = bundle_of(out, "waves-1-rpi5")
    assert {entry.role for entry in config.files} >= {
        role.value
        for role in (Role.MODEL, Role.CONTRACT, Role.GOLDEN, Role.TOLERANCE, Role.REFERENCE)
    }
    assert len(files["model.onnx"]) == record.variant("rpi5").size_bytes
    assert files["contract.json"] == codec.encode(waves.contract)
    reference = msgspec.json.decode(files["reference.json"])
    assert reference["n"] == waves.dataset(Split.EVALUATION).n
    groups = validate(codec.decode(Reference, files["reference.json"], what="reference")).groups
    assert reference["edges_digest"] == probes.digest(groups) != CONFIDENCE_BINS.digest
    assert [(group.side.value, group.tensor) for group in groups] == [("input", "x")]
    for probe in groups[0].probes:
        assert sum(reference["probes"][probe.name]) == reference["n"]
    assert sum(reference["probes"]["class"]) == sum(reference["probes"]["confidence"])
    evidence = msgspec.json.decode(files["evidence.json"])
    assert {gate["outcome"] for gate in evidence["gates"]} == {"pass"}
    assert evidence["inputs"]["evaluation"] == waves.dataset(Split.EVALUATION).digest
    assert files["card.md"].startswith(b"# Waves\n")


def test_golden_set_is_this_variants_own(built, tmp_path, waves):
    _, out, _ = built
    _, files = bundle_of(out, "waves-1-rpi5")
    (tmp_path / "g.npz").write_bytes(files["golden.npz"])
    with np.load(tmp_path / "g.npz") as golden:
        assert sorted(golden.files) == ["in.x", "out.y"]
        assert len(golden["in.x"]) == len(golden["out.y"]) == waves.dataset(Split.GOLDEN).n


def test_progress_counts_up_and_estimates(built):
    _, _, steps = built
    assert [step.done for step in steps] == list(range(len(steps)))
    assert all(step.done < step.total for step in steps)
    assert steps[0].eta_s is None
    assert steps[-1].eta_s >= 0


def test_a_warm_rebuild_starts_no_process_and_writes_the_same_bytes(
    built, registry, waves, tmp_path, monkeypatch
):
    record, out, _ = built
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    again = run(registry, waves, tmp_path / "out", Cache(out.parent / "cache"))
    assert again == record
    assert tree(tmp_path / "out") == tree(out)


def test_a_cold_rebuild_of_the_same_inputs_gives_the_same_bytes(built, registry, waves, tmp_path):
    _, out, _ = built
    run(registry, waves, tmp_path / "out", Cache(tmp_path / "cache"), names=("rpi5",))
    assert bundle_of(tmp_path / "out", "waves-1-rpi5") == bundle_of(out, "waves-1-rpi5")


def test_a_failed_gate_withdraws_the_bundle_and_names_gate_and_figures(
    registry, waves, cache, tmp_path
):
    run(registry, waves, tmp_path / "out", cache, names=("rpi5",))
    small = {"rpi5": Budget(size_bytes_max=1000)}
    strict = msgspec.structs.replace(
        waves, contract=msgspec.structs.replace(waves.contract, budgets=small)
    )
    record = run(registry, strict, tmp_path / "out", cache, names=("rpi5",))
    assert record.outcome is Outcome.FAIL
    assert record.variant("rpi5").digest is None
    outcomes = {entry.outcome for entry in record.variant("rpi5").candidates}
    assert "gate_failed" in outcomes
    assert "chosen" not in outcomes
    assert LayoutReader(tmp_path / "out").index().manifests == ()
    with pytest.raises(GateFailedError, match=r"rpi5: gate size_bytes failed: \d+ bytes; allowed"):
        record.raise_if_failed()


def test_a_target_that_cannot_be_validated_here_fails_closed(registry, waves, cache, tmp_path):
    record = run(registry, waves, tmp_path / "out", cache, names=("x86-64-vnni", "rpi5"))
    failed = {v.metric for v in record.variant("x86-64-vnni").verdicts if v.outcome is Outcome.FAIL}
    assert failed == {"latency_ms_p50", "validation"}
    assert record.variant("x86-64-vnni").digest is None
    # The other target is not held hostage.
    assert [m.digest for m in LayoutReader(tmp_path / "out").index().manifests] == [
        record.variant("rpi5").digest
    ]


def test_preprocessing_becomes_part_of_the_graph(place, registry, cache, tmp_path):
    """The registered model takes standardised numbers, devices have volts."""
    x, labels = graphs.waves()
    np.savez(tmp_path / "volts.npz", x=x * 5 + 230, labels=labels)
    path = graphs.save(graphs.classifier(hidden=256), tmp_path / "volts.onnx")
    derived = infer.contract_of(graph.facts(onnx.load(path), "m"), None).contract
    declared = msgspec.structs.replace(
        derived.inputs[0], preprocess=(Normalise(mean=(230.0,), std=(5.0,)),)
    )
    contract = msgspec.structs.replace(derived, inputs=(declared,))
    model = register(
        registry, "volts", path, Sources(data=str(tmp_path / "volts.npz")), contract=contract
    ).version
    found = {}
    for fold in (False, True):
        out = tmp_path / str(fold)
        record = run(registry, model, out, cache, names=("rpi5",), fold_preprocessing=fold)
        variant = record.variant("rpi5")
        assert variant.outcome is Outcome.PASS
        assert variant.precision == "int8"
        notes = " ".join(record.normalised)
        assert ("the graph does the declared preprocessing (steps: 1)" in notes) is fold
        _, files = bundle_of(out, "volts-1-rpi5")
        shipped = codec.decode(Contract, files["contract.json"], what="contract")
        assert bool(shipped.inputs[0].preprocess) is not fold
        found[fold] = variant.quality_drop
    assert found[True] == pytest.approx(found[False], abs=0.02)


def outlier_model():
    """One hidden feature is a hundred thousand times the others: 8 bits cannot hold both."""
    model = graphs.classifier(hidden=256)
    weights = {t.name: t for t in model.graph.initializer}
    for name, row, scale in (("first", (slice(None), 0), 1e5), ("head", (0, slice(None)), 1e-5)):
        array = numpy_helper.to_array(weights[name]).copy()
        array[row] *= scale
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
    return model


def test_int8_that_loses_quality_loses_to_fp32(place, registry, cache, tmp_path):
    model = add(registry, place, outlier_model(), "outlier")
    variant = run(registry, model, tmp_path / "out", cache, names=("rpi5",)).variant("rpi5")
    assert variant.precision == "fp32"
    assert variant.outcome is Outcome.PASS
    reasons = {entry.name: entry.reason for entry in variant.candidates}
    assert "on the tuning data, more than 0.02" in reasons["int8-weights-s8"]


def test_a_quantizer_error_drops_the_candidate_with_its_exact_text(
    place, registry, cache, tmp_path
):
    model = add(registry, place, graphs.relu(), "relu", drop_max=0.3)
    variant = run(registry, model, tmp_path / "out", cache, names=("rpi5",)).variant("rpi5")
    assert variant.precision == "fp32"
    dropped = [entry for entry in variant.candidates if entry.outcome == "dropped"]
    assert len(dropped) == 1
    assert all(entry.reason.startswith("NothingToQuantizeError: no Conv") for entry in dropped)


def test_an_original_that_does_not_run_is_bad_input(place, registry, cache, tmp_path):
    shape = numpy_helper.from_array(np.asarray([7, 7]), "shape")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = add(registry, place, graphs.model(nodes, [shape], outputs=(7, 7)), "bad", drop_max=0.3)
    with pytest.raises(BadInputError, match="the original model cannot be run"):
        run(registry, model, tmp_path / "out", cache, names=("rpi5",))
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_into_memory_is_dropped_and_tried_again_with_more(
    place, registry, cache, tmp_path
):
    model = add(registry, place, graphs.wide(), "wide", drop_max=0.1)
    options = {"names": ("rpi5",), "memory_bytes": 400_000_000}
    variant = run(registry, model, tmp_path / "out", cache, **options).variant("rpi5")
    assert variant.candidate == "fp32"
    reasons = {entry.name: entry.reason for entry in variant.candidates}
    assert "it needs more than its 0.4 GB of memory" in reasons["int8-weights-s8"]
    variant = run(registry, model, tmp_path / "out", cache, names=("rpi5",)).variant("rpi5")
    assert variant.candidate == "int8-weights-s8"  # nothing of that is remembered
    options["memory_bytes"] = 150_000_000
    with pytest.raises(ResourceError, match=r"the original model: .* its 0.1 GB") as caught:
        run(registry, model, tmp_path / "out", Cache(tmp_path / "cache"), **options)
    assert "--memory-budget" in caught.value.hint


def test_a_machine_that_starts_no_process_leaves_nothing(registry, waves, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ResourceError, match="cannot start"):
        run(registry, waves, tmp_path / "out", Cache(tmp_path / "cache"))
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").glob("work-*"))


def test_targets_are_given_and_given_once(registry, waves, cache, tmp_path):
    for names in ((), ("rpi5", "rpi5")):
        with pytest.raises(UsageError, match="each only once"):
            run(registry, waves, tmp_path / "out", cache, names=names)
