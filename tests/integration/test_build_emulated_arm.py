"""A Raspberry Pi's variant runs under ARM emulation and reproduces its golden outputs there."""

import os
import shutil

import msgspec
import numpy as np
import pytest
from buildkit import graphs

from edgekit.build import emulate, host, target
from edgekit.build.cache import Cache, default_root
from edgekit.build.data import DataFile
from edgekit.build.measure import Measurer, Subject, neutral
from edgekit.build.pipeline import build
from edgekit.build.ports import BundleContent
from edgekit.build.target import Validation
from edgekit.contracts import codec
from edgekit.contracts.bundle import Role
from edgekit.contracts.errors import UnavailableError
from edgekit.contracts.golden import OUTPUT_PREFIX
from edgekit.contracts.verdict import Outcome
from edgekit.package import reader
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry import npz
from edgekit.registry.local import LocalRegistry
from edgekit.registry.register import Sources, register

HOST = host.detect()
RPI5 = msgspec.structs.replace(
    target.emulating(target.find("rpi5")), validation_required=Validation.EMULATED
)


def _missing():
    """What is not there: outside CI a reason to skip, in CI to fail."""
    try:
        emulate.find(RPI5, HOST, default_root())
    except UnavailableError as exc:
        return None if os.environ.get("CI") else f"{exc.message}; {exc.hint}"
    return None


pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(_missing() is not None, reason=_missing() or ""),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("arm")


@pytest.fixture(scope="module", autouse=True)
def _root():
    """The root this machine has, under its name: the tests use caches of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(emulate.ROOT_ENV, str(emulate.root_folder(RPI5, default_root())))
        yield


@pytest.fixture(scope="module")
def model(place):
    graphs.save(graphs.convolution(32), place / "eyes.onnx")
    graphs.save_data(place / "data.npz")
    registry = LocalRegistry(place / "registry")
    sources = Sources(data=str(place / "data.npz"))
    path = place / "eyes.onnx"
    return registry, register(registry, "eyes", path, sources, drop_max=0.1).version


def made(model, place, out):
    registry, version = model
    record = build(
        registry,
        version,
        [RPI5],
        place / out,
        writer=OciBundleWriter(),
        cache=Cache(place / "cache"),
        time_budget_s=0.0,
    )
    return record.variants[0]


@pytest.fixture(scope="module")
def variant(model, place):
    return made(model, place, "out")


def verdict_of(variant):
    return next(v for v in variant.verdicts if v.metric.startswith("emulated_"))


def test_an_rpi5_variant_runs_on_an_emulated_cortex_a76(variant):
    assert (variant.outcome, variant.validated) == (Outcome.PASS, "emulated")
    assert variant.precision == "int8"  # integer kernels of ARM, not only floats
    assert "-cpu cortex-a76, Python 3." in variant.emulated_on
    assert "onnxruntime" in variant.emulated_on
    verdict = verdict_of(variant)
    assert verdict.outcome is Outcome.PASS
    assert "golden set of the build host: 32 of 32 samples within tolerance" in verdict.reason


def test_the_bundle_that_ships_reproduces_its_golden_outputs_on_arm(model, variant, place):
    """Once more from the written bundle, and not with outputs that are a little off."""
    (bundle,) = reader.find_all(str(place / "out"))

    def content(role):
        return bundle.reader.blob_path(bundle.manifest.file(role).sha256).read_bytes()

    def replayed(golden):
        name = bundle.manifest.file(Role.MODEL).path
        subject = Subject(
            (BundleContent(name, Role.MODEL, content(Role.MODEL)),),
            bundle.manifest.file(Role.MODEL).sha256,
            bundle.manifest.engine,
            bundle.manifest.engine_versions,
            golden=golden,
            tolerance=content(Role.TOLERANCE),
        )
        measurer = Measurer(
            Cache(place / "replay"), OciBundleWriter(), HOST, neutral(model[1].contract)
        )
        emulator = emulate.find(RPI5, HOST, place)
        data = DataFile(place / "inputs.npz", ["data"], lambda: npz.read(place / "data.npz"))
        return measurer.measure(subject, data, emulator=emulator).evaluation

    found = replayed(content(Role.GOLDEN))
    assert (found.machine, found.golden.outcome, found.golden.n) == ("aarch64", Outcome.PASS, 32)
    assert set(RPI5.isa) <= set(found.isa)
    with np.load(bundle.reader.blob_path(bundle.manifest.file(Role.GOLDEN).sha256)) as arrays:
        off = {k: v + (k.startswith(OUTPUT_PREFIX) * np.float32(0.5)) for k, v in arrays.items()}
    np.savez(place / "off.npz", **off)
    assert replayed((place / "off.npz").read_bytes()).golden.outcome is Outcome.FAIL


def test_a_cpu_without_the_targets_instructions_is_not_the_target(place):
    old = msgspec.structs.replace(RPI5, emulator="cortex-a53")
    with pytest.raises(UnavailableError, match=r"aarch64 with .*; needed: asimd asimddp"):
        emulate.ready(old, HOST, Cache(place / "cache"))


def broken_root(place):
    """A root of another base that lost a package: finished by its own document, and useless."""
    root = emulate.root_folder(RPI5, place)
    copy = place / "broken"
    shutil.copytree(root, copy, symlinks=True)
    document = codec.read(emulate.Root, copy / emulate.ROOT_FILE)
    other = msgspec.structs.replace(document, base="sha256:" + "0" * 64)
    (copy / emulate.ROOT_FILE).write_bytes(codec.encode(other))
    shutil.rmtree(copy / "opt/edgekit/site/msgspec")
    return copy


def old_qemu(place):
    """A qemu on the PATH that says it is Debian 12's."""
    program = place / "bin" / "qemu-aarch64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho qemu-aarch64 version 7.2.22\n")
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "fault",
    [
        ("PATH", old_qemu, "is version 7.2.22, too old", "install qemu-user 10 or newer"),
        ("PATH", lambda _: "/nonexistent", "no qemu-aarch64", "install qemu-user 10 or newer"),
        (emulate.ROOT_ENV, lambda folder: folder / "no", "holds none", "--base-rootfs ROOT.tar"),
        (emulate.ROOT_ENV, broken_root, "No module named 'msgspec'", "targets emulator rpi5"),
    ],
)
def test_what_is_missing_fails_the_gate(model, place, tmp_path, monkeypatch, fault):
    variable, value, reason, mend = fault
    monkeypatch.setenv(variable, str(value(tmp_path)))
    failed = made(model, place, tmp_path / "out")
    verdict = verdict_of(failed)
    assert verdict.outcome is Outcome.FAIL
    assert reason in verdict.reason
    assert mend in verdict.reason
    assert (failed.validated, failed.outcome, failed.digest) == ("none", Outcome.FAIL, None)
    assert failed.looks == 1  # no look at the evaluation split is spent on it
