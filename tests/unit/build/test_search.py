"""The search is a pure function of what is known; here a simulated model answers it."""

from dataclasses import replace

import msgspec

from edgekit.build import search
from edgekit.build.candidates import (
    FP32,
    Calibration,
    Layer,
    Ops,
    Structure,
    by_nncf,
    candidates_for,
)
from edgekit.build.search import Known
from edgekit.build.select import Figures
from edgekit.build.target import find
from edgekit.contracts.evaluation import Latency
from edgekit.stats.bounds import Drop

LAYERS = tuple(f"layer{index}" for index in range(12))
STRUCTURE = Structure(
    layers=tuple(Layer(name, "Conv") for name in LAYERS), ops=("Conv",), quantized=False
)
TARGET = find("rpi5")
LIMIT = 0.02


class Model:
    """Each harmful layer that is quantized costs its share of the metric."""

    def __init__(self, harm, *, mended_by=None):
        self.harm, self.mended_by = harm, mended_by
        self.figures, self.asked = {}, []

    def measure(self, candidate):
        layers = candidate.layers_of(STRUCTURE)
        cost = sum(self.harm.get(name, 0.0) for name in layers)
        if candidate.calibration is self.mended_by:
            cost = 0.0
        size = 1000 - 70 * len(layers) + (5 if candidate.ops is Ops.ALL else 0)
        size += 2 * candidate.per_channel
        drop = Drop(cost, cost, cost, 100)
        self.asked.append(candidate)
        self.figures[candidate] = Figures(candidate, size, drop, None, drop, noise=cost)

    def known(self):
        return Known(dict(self.figures), frozenset(), LIMIT, timed=False)

    def search(self, limit=200):
        for candidate in candidates_for(TARGET, STRUCTURE):
            if candidate.needs_ranges or candidate == FP32:
                self.measure(candidate)
        first = len(self.asked)
        while batch := search.next_candidates(self.known(), STRUCTURE):
            for candidate in batch:
                assert candidate not in self.figures
                self.measure(candidate)
                assert len(self.asked) < limit
        return self.asked[first:]

    def best(self):
        from edgekit.build.select import preference

        shipping = [f for f in self.figures.values() if not f.candidate.only]
        return preference(shipping, LIMIT)[0].candidate


def test_where_latency_decides_the_best_compete_laid_out_for_the_processor_too():
    model = Model({})
    for candidate in candidates_for(TARGET, STRUCTURE):
        model.measure(candidate)
    known = timed(model)
    asked = search.next_candidates(known, STRUCTURE)
    assert asked[0].name == "fp32-layout"
    assert len(asked) == 3  # the original and the two that answered soonest
    assert all(each.file in model.figures and not each.file.layout for each in asked)
    assert not any(each.unquantized for each in asked)  # what differs has something to prove
    for candidate in asked:
        model.measure(candidate)
    again = search.next_candidates(timed(model), STRUCTURE)
    assert not any(each.layout for each in again)
    linear = msgspec.structs.replace(STRUCTURE, ops=("MatMul",))
    assert not any(each.layout for each in search.next_candidates(known, linear))


def latency(ms):
    return Latency(p50_ms=ms, p95_ms=ms, runs=1, threads=1)


def timed(model):
    """What is known, with latencies: smaller is faster here."""
    figures = {
        candidate: replace(found, latency=latency(found.size_bytes))
        for candidate, found in model.figures.items()
    }
    return Known(figures, frozenset(), LIMIT, timed=True)


def test_full_precision_by_any_engine_comes_before_what_needs_calibration():
    """A large model can take as long to calibrate as a search may last."""
    found = candidates_for(find("x86-64-v3-openvino"), STRUCTURE)
    assert [each.name for each in found[:2]] == ["fp32", "ov-fp32"]
    assert all(each.precision != "fp32" for each in found[2:])


def test_other_quantizers_are_tried_before_anything_is_repaired():
    others = by_nncf(find("x86-64-v3-openvino"), STRUCTURE)
    assert [each.name for each in others] == ["int8-nncf-rr", "ov-int8-nncf-rr"]
    model = Model({"layer3": 0.5})
    for candidate in candidates_for(TARGET, STRUCTURE):
        model.measure(candidate)
    rules = search.next_candidates(model.known(), STRUCTURE, others)  # whose ranges are known
    assert len(rules) == 6
    assert {each.calibration for each in rules} == {Calibration.ENTROPY, Calibration.PERCENTILE}
    for candidate in rules:
        model.measure(candidate)
    assert search.next_candidates(model.known(), STRUCTURE, others) == others
    for candidate in others:
        model.measure(candidate)
    assert not set(search.next_candidates(model.known(), STRUCTURE, others)) & set(others)


def test_a_transformer_is_offered_to_nncf_as_one_and_as_any_model():
    attention = msgspec.structs.replace(STRUCTURE, attention=True)
    found = by_nncf(TARGET, attention)
    assert [(each.name, each.transformer) for each in found] == [
        ("int8-nncf-transformer", True),
        ("int8-nncf", False),
    ]


def test_nothing_is_searched_when_the_first_round_is_good():
    model = Model({})
    assert model.search() == []
    assert model.best().floats == ()


def test_exactly_the_sensitive_layer_goes_back_to_float():
    model = Model({"layer4": 0.3})
    model.search()
    assert model.best().floats == ("layer4",)


def test_layers_that_do_harm_together_are_all_found_and_no_other():
    harm = {"layer1": 0.1, "layer5": 0.02, "layer7": 0.015, "layer8": 0.01, "layer10": 0.01}
    model = Model(harm)
    model.search()
    left = model.best().floats
    assert set(left) <= set(harm)
    assert sum(harm[name] for name in harm if name not in left) <= LIMIT
    # None of them could be put back.
    for name in left:
        assert sum(harm[n] for n in harm if n not in left or n == name) > LIMIT


def test_probes_precede_reversals_and_are_asked_once():
    model = Model({"layer4": 0.3})
    asked = model.search()
    probes = [candidate for candidate in asked if candidate.only]
    assert len(set(probes)) == len(probes)
    assert {candidate.only[0] for candidate in probes} == set(LAYERS)
    assert asked.index(probes[-1]) < next(i for i, c in enumerate(asked) if c.floats)


def test_a_stopped_search_goes_on_where_it_was():
    whole, part = Model({"layer4": 0.3}), Model({"layer4": 0.3})
    asked = whole.search()
    part.figures = {c: whole.figures[c] for c in whole.asked[: len(whole.asked) // 2]}
    left = []
    while batch := search.next_candidates(part.known(), STRUCTURE):
        for candidate in batch:
            left.append(candidate)
            part.measure(candidate)
    assert set(left) == set(asked) - set(whole.asked[: len(whole.asked) // 2])


def test_other_calibration_rules_come_before_any_reversal():
    model = Model({"layer4": 0.3}, mended_by=Calibration.PERCENTILE)
    asked = model.search()
    assert {c.calibration for c in asked} == {Calibration.ENTROPY, Calibration.PERCENTILE}
    assert not any(c.only or c.floats for c in asked)
    assert model.best().calibration is Calibration.PERCENTILE


def test_a_model_that_cannot_be_mended_keeps_to_the_original():
    model = Model(dict.fromkeys(LAYERS, 0.3))
    model.search()
    assert model.best() == FP32


def test_a_dropped_probe_counts_as_the_worst_layer():
    model = Model({"layer4": 0.3})
    model.search()
    base = next(c for c in model.figures if c.ops is Ops.WEIGHTS and not c.only and not c.floats)
    figures = {c: f for c, f in model.figures.items() if c != search.probe(base, "layer9")}
    known = Known(figures, frozenset({search.probe(base, "layer9")}), LIMIT, timed=False)
    assert search.sensitivity(known, base, STRUCTURE)[:2] == ["layer9", "layer4"]


def test_names_of_reversals_are_readable_and_distinct():
    base = msgspec.structs.replace(candidates_for(TARGET, STRUCTURE)[1], name="b")
    few = search.reverted(base, ["layer2", "layer1"], STRUCTURE)
    assert (few.name, few.floats) == ("b+float(layer1,layer2)", ("layer1", "layer2"))
    many = {search.reverted(base, LAYERS[i : i + 5], STRUCTURE).name for i in range(4)}
    assert len(many) == 4
    assert all(len(name) < 40 for name in many)
