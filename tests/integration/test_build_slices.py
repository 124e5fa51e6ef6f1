"""Slices: a variant that holds on average and breaks a minority does not ship."""

import numpy as np
import pytest
from buildkit import graphs

from edgekit.build import target
from edgekit.build.cache import Cache
from edgekit.build.host import Host
from edgekit.build.pipeline import build
from edgekit.contracts.verdict import Outcome
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry.local import LocalRegistry
from edgekit.registry.model import Split
from edgekit.registry.register import Sources, register

pytestmark = pytest.mark.integration

HOST = Host("x86_64", frozenset({"sse4_2"}), "test processor")


def run(tmp_path, slices):
    """One sample in twelve is faint: a thousandth of the amplitude, below what 8 bits resolve."""
    x, labels = graphs.waves(1200)
    faint = np.arange(1200) % 12 == 0
    x[faint] *= 0.001
    named = {"slice": faint.astype(np.int64)} if slices else {}
    np.savez(tmp_path / "d.npz", x=x, labels=labels, **named)
    sources = Sources(data=str(tmp_path / "d.npz"))
    return built(tmp_path, sources, graphs.classifier(hidden=256)).variants[0]


def built(tmp_path, sources, model):
    path = graphs.save(model, tmp_path / "m.onnx")
    registry = LocalRegistry(tmp_path / "registry")
    version = register(registry, "waves", path, sources, drop_max=0.12).version
    return build(
        registry,
        version,
        [target.find("rpi5")],
        tmp_path / "out",
        writer=OciBundleWriter(),
        cache=Cache(tmp_path / "cache"),
        host=HOST,
        time_budget_s=0.0,
    )


def test_without_slices_the_average_hides_it(tmp_path):
    variant = run(tmp_path, slices=False)
    assert variant.precision == "int8"
    assert 0.01 < variant.quality_drop < 0.12


def test_with_slices_it_is_seen_and_another_variant_ships(tmp_path):
    variant = run(tmp_path, slices=True)
    assert variant.outcome is Outcome.PASS
    reasons = {entry.name: entry.reason for entry in variant.candidates}
    assert "slice 1 of the tuning data drops" in reasons["int8-weights-s8"]
    assert {v.metric for v in variant.verdicts} >= {"top1_drop", "top1_drop[0]", "top1_drop[1]"}
    assert all(v.estimate <= 0.12 for v in variant.verdicts if v.metric.startswith("top1_drop"))


def test_calibration_that_is_not_like_the_field_is_said_and_does_not_ship(tmp_path):
    """Calibrated while the machine stood still; in one sample of twelve it runs."""
    splits = {}
    rng = np.random.default_rng(0)
    for split, n in {"calibration": 200, "tuning": 400, "evaluation": 800, "golden": 16}.items():
        runs = (np.arange(n) % 12 == 11) & (split != "calibration")
        level = np.where(runs, rng.uniform(4, 8, n), rng.uniform(0.1, 1, n))
        x = (level[:, None] + rng.normal(0, 0.05, (n, graphs.LENGTH))).astype(np.float32)
        labels = runs.astype(np.int64)
        np.savez(tmp_path / f"{split}.npz", x=x, labels=labels, slice=labels)
        splits[Split(split)] = str(tmp_path / f"{split}.npz")
    record = built(tmp_path, Sources(splits=splits), graphs.levels())
    outside, missing = record.warnings
    assert "8% of the tuning samples leave the range of input 'x'" in outside
    assert missing == "calibration holds no sample of slice 1"
    (variant,) = record.variants
    assert variant.outcome is Outcome.PASS
    assert variant.candidate == "fp32"
    reasons = {entry.name: entry.reason for entry in variant.candidates}
    assert "slice 1 of the tuning data drops" in reasons["int8-weights-s8"]
