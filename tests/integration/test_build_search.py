"""The search on a real model, with real processes: it reverts what hurts, and nothing else."""

import pytest
from buildkit import graphs

from edgekit.build import target
from edgekit.build.cache import Cache
from edgekit.build.host import Host
from edgekit.build.pipeline import build
from edgekit.contracts.verdict import Outcome
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry.local import LocalRegistry
from edgekit.registry.register import Sources, register

pytestmark = pytest.mark.integration

HOST = Host("x86_64", frozenset({"avx2", "fma"}), "test processor")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def registry(place):
    return LocalRegistry(place / "registry")


def add(registry, place, model, name):
    path = graphs.save(model, place / f"{name}.onnx")
    data = graphs.save_data(place / f"{name}.npz")
    return register(registry, name, path, Sources(data=str(data))).version


@pytest.fixture(scope="module")
def planted(registry, place):
    return add(registry, place, graphs.sensitive(), "planted")


def run(registry, model, place, out, budget_s, *, name="rpi5", **options):
    record = build(
        registry,
        model,
        [target.find(name)],
        place / out,
        writer=OciBundleWriter(),
        cache=Cache(place / "cache"),
        host=HOST,
        time_budget_s=budget_s,
        **options,
    )
    return record.variant(name)


def test_without_time_two_candidates_decide_and_the_record_says_what_would_come_next(
    registry, planted, place
):
    variant = run(registry, planted, place, "none", 0.0)
    assert variant.outcome is Outcome.PASS
    assert variant.precision == "fp32"
    assert [entry.name for entry in variant.candidates] == ["fp32", "int8-weights-s8"]
    assert (variant.search.complete, variant.search.tried) == (False, 0)
    assert variant.search.next == "int8-dynamic"


def test_exactly_the_planted_layer_goes_back_to_float(registry, planted, place):
    steps = []
    variant = run(registry, planted, place, "out", 300.0, on_progress=steps.append)
    assert variant.outcome is Outcome.PASS
    chosen = next(entry for entry in variant.candidates if entry.outcome == "chosen")
    assert chosen.floats == ("l2",)
    assert chosen.precision == "int8"
    assert variant.size_bytes < 0.6 * variant.original_size_bytes
    probes = {e.name: e.quality_drop for e in variant.candidates if e.outcome == "probe"}
    hurting = [name for name, drop in probes.items() if drop > 0.02]
    assert len(probes) >= 4
    assert all("only(l2)" in name for name in hurting)
    assert hurting
    assert variant.search.complete
    assert len(steps) > len(probes)
    tried = {entry.name for entry in variant.candidates}  # of the first round, too
    assert {"int8-all-s8", "int8-weights-s8-pt", "int8-dynamic", "weights8", "fp16"} <= tried

    # fp32 is beaten: as good and larger. The smallest is on the front, however bad it is.
    front = {entry.name for entry in variant.candidates if entry.pareto}
    assert chosen.name in front
    assert "fp32" not in front
    assert len(front) > 1
    again = run(registry, planted, place, "again", 0.0)
    assert again.candidate == variant.candidate  # all of it was in the cache
    assert again.search == variant.search


def test_what_is_quantized_already_ships_as_it_is(registry, place):
    model = add(registry, place, graphs.prequantized(), "quantized")
    variant = run(registry, model, place, "out", 10.0)
    assert variant.candidate == "as-registered"
    assert variant.quality_drop == 0.0
    assert variant.size_bytes == variant.original_size_bytes


def test_a_jetson_gets_symmetric_pairs_and_is_repaired_alike(registry, planted, place):
    variant = run(registry, planted, place, "orin", 300.0, name="jetson-orin")
    assert variant.outcome is Outcome.PASS
    assert variant.candidate == "int8-trt-weights+float(l2)"
    assert variant.validated == "none"
