"""What a build finds again in its cache, and what it must not: steps of real builds are watched."""

from importlib import metadata

import numpy as np
import pytest
from buildkit import graphs

from edgekit.build import target, tools
from edgekit.build.cache import Cache
from edgekit.build.host import Host
from edgekit.build.pipeline import build
from edgekit.contracts.oci import LayoutReader
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry.local import LocalRegistry
from edgekit.registry.model import Split
from edgekit.registry.register import Sources, register

pytestmark = pytest.mark.integration
HOST = Host("x86_64", frozenset({"avx2", "fma"}), "test processor")
SIZES = {"calibration": 120, "tuning": 400, "evaluation": 500, "golden": 16}


class Watched(Cache):
    """Knows which steps were made and which were found."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.made: set[str] = set()

    def run(self, step, make):
        entry = super().run(step, make)
        if not entry.reused:
            self.made.add(step.name)
        return entry


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _model(place, **changed):
    """The model with its four splits; ``changed`` gives one of them another seed."""
    folder = place / "-".join(changed or ["as it is"])
    folder.mkdir(exist_ok=True)
    paths = {}
    for seed, (split, n) in enumerate(SIZES.items()):
        x, labels = graphs.waves(n, seed=changed.get(split, seed))
        path = folder / f"{split}.npz"
        np.savez(path, x=x, labels=labels)
        paths[Split(split)] = str(path)
    registry = LocalRegistry(folder / "registry")
    source = graphs.save(graphs.classifier(hidden=256), folder / "m.onnx")
    return registry, register(registry, "waves", source, Sources(splits=paths)).version


def _made(place, out, *, host=HOST, **changed):
    """Names of the steps that a build over the shared cache had to make."""
    registry, model = _model(place, **changed)
    cache = Watched(place / "cache")
    build(
        registry, model, [target.find("rpi5")], place / out,
        writer=OciBundleWriter(), cache=cache, host=host, time_budget_s=0.0,
    )  # fmt: skip
    return cache.made


@pytest.fixture(scope="module")
def warm(place):
    """A first build has made everything."""
    assert _made(place, "first") == {
        "normalise",
        "representative",
        "calibrate",
        "quantize",
        "measure",
        "layer-errors",
    }
    return place


def test_nothing_is_made_twice(warm):
    assert _made(warm, "again") == set()


@pytest.mark.parametrize(
    ("split", "made"),
    [
        ("calibration", {"representative", "calibrate", "quantize", "measure", "layer-errors"}),
        ("tuning", {"representative", "measure", "layer-errors"}),
        ("evaluation", {"measure"}),
        ("golden", {"measure", "layer-errors"}),  # which run with the tuning data
    ],
)
def test_a_changed_data_set_misses_what_depends_on_it_and_nothing_else(warm, split, made):
    assert _made(warm, f"other-{split}", **{split: 99}) == made


def _forget_versions() -> None:
    tools.versions.cache_clear()
    tools.version_of.cache_clear()


def test_another_version_of_a_tool_misses_everything(warm, monkeypatch):
    installed = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.0.1" if name == "onnxruntime" else installed(name)
    )
    _forget_versions()
    try:
        assert tools.versions()["onnxruntime"] == "0.0.1"
        assert _made(warm, "other") == {
            "normalise",
            "calibrate",
            "quantize",
            "measure",
            "layer-errors",
        }
    finally:
        monkeypatch.undo()
        _forget_versions()


def test_changed_code_on_the_device_measures_anew(warm, monkeypatch):
    monkeypatch.setattr(tools, "measuring_code", lambda: "edited")
    assert _made(warm, "edited") == {"measure"}


def test_another_processor_calibrates_and_measures_anew(warm):
    other = Host("x86_64", frozenset({"avx2", "fma", "avx512_vnni"}), "another processor")
    assert _made(warm, "elsewhere", host=other) >= {"calibrate", "measure", "layer-errors"}


def test_ranges_that_are_not_what_calibration_wrote_are_made_again(warm):
    """A stale or damaged file under the right key: its digest gives it away."""
    found = list((warm / "cache").rglob("ranges.json"))
    assert found
    for path in found:
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    assert _made(warm, "mended") == {"calibrate"}
    assert _made(warm, "once") == set()


def test_a_damaged_variant_is_made_again_before_it_is_shipped(warm):
    """Its file is not read to find it; whoever copies it into a bundle sees what it is."""
    shipped = LayoutReader(warm / "first").resolve("waves-1-rpi5")
    models = [
        path for path in (warm / "cache" / "steps").rglob("model.onnx") if path.stat().st_size
    ]
    for path in models:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    assert "quantize" in _made(warm, "damaged")
    assert LayoutReader(warm / "damaged").resolve("waves-1-rpi5") == shipped
