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
    path = graphs.save(graphs.classifier(hidden=256), tmp_path / "m.onnx")
    registry = LocalRegistry(tmp_path / "registry")
    sources = Sources(data=str(tmp_path / "d.npz"))
    version = register(registry, "waves", path, sources, drop_max=0.12).version
    record = build(
        registry,
        version,
        [target.find("rpi5")],
        tmp_path / "out",
        writer=OciBundleWriter(),
        cache=Cache(tmp_path / "cache"),
        host=HOST,
        time_budget_s=0.0,
    )
    return record.variants[0]


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
