"""Measuring on a device: its shell is one of this machine, the way there is the real one."""

import sys

import pytest
from buildkit import graphs

from edgekit.build import devices, target
from edgekit.build.cache import Cache
from edgekit.build.devices import Device
from edgekit.build.host import Host, detect
from edgekit.build.measure import CandidateError, Measurer, neutral
from edgekit.build.pipeline import build
from edgekit.build.processes import Processes
from edgekit.build.study import prepare
from edgekit.contracts.errors import UnavailableError, UsageError
from edgekit.contracts.verdict import Outcome
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry.local import LocalRegistry
from edgekit.registry.register import Sources, register

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(detect().arch != "x86_64", reason="the device stands for an x86 one"),
]
# The build host is another kind of machine: what is measured for the target is measured elsewhere.
HOST = Host("aarch64", frozenset(), "test processor")
TARGET = target.find("x86-64-v3")
HERE = Device(("sh", "-c"), sys.executable)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    registry = LocalRegistry(place / "registry")
    source = graphs.save(graphs.classifier(hidden=256), place / "m.onnx")
    data = graphs.save_data(place / "d.npz")
    return registry, register(registry, "waves", source, Sources(data=str(data))).version


def _build(model, place, device, **options):
    registry, version = model
    return build(
        registry, version, [TARGET], place / "out",
        writer=OciBundleWriter(), cache=Cache(place / "cache"), host=HOST, time_budget_s=0.0,
        devices={TARGET.name: device} if device else None, **options,
    )  # fmt: skip


def test_a_device_measures_what_the_build_host_cannot(model, tmp_path):
    without = _build(model, tmp_path, None).variant(TARGET.name)
    assert without.outcome is Outcome.FAIL  # the target gates on latency, and this host is no x86
    record = _build(model, tmp_path, HERE)
    variant = record.variant(TARGET.name)
    assert variant.outcome is Outcome.PASS
    assert variant.validated == "device"
    assert variant.latency_ms > 0
    assert variant.original_latency_ms > 0
    assert variant.quality_measured_on.startswith("x86_64, onnxruntime")
    outcomes = {verdict.metric: verdict.outcome for verdict in variant.verdicts}
    assert outcomes["latency_ms_p50"] is Outcome.PASS
    assert outcomes["validation"] is Outcome.PASS
    again = _build(model, tmp_path, HERE)
    assert again == record  # found in the cache


def test_nothing_is_left_on_the_device(model, tmp_path, monkeypatch):
    work = tmp_path / "device"
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(work))
    _build(model, tmp_path, HERE)
    assert not list(work.glob("tmp.*"))


UNREACHABLE = Device(("sh", "-c", "echo no route to host >&2; exit 255"), "python3")
GREETS = Device(("sh", "-c", 'echo Welcome; eval "$0"'), sys.executable)


@pytest.mark.parametrize(
    ("device", "said", "hint"),
    [
        (UNREACHABLE, "no route to host", "--device-python"),
        (Device(("sh", "-c"), "/nonexistent/python3"), "not found", "--device-python"),
        (Device(("sh", "-c"), f"{sys.executable} -I -S"), "No module named", "--device-python"),
        (GREETS, "something else came back than the answer: b'Welcome", "must not greet"),
    ],
    ids=["unreachable", "no Python", "no runtime", "a shell that greets"],
)
def test_a_device_that_cannot_measure_ends_the_build_at_once(model, tmp_path, device, said, hint):
    with pytest.raises(UnavailableError, match=said) as caught:
        _build(model, tmp_path, device)
    assert hint in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.fixture
def measured(model, tmp_path):
    """Measures the original on a device that answers the probe and then does as ``last`` says."""

    def measure(last):
        registry, version = model
        cache = Cache(tmp_path / "cache")
        study = prepare(registry, version, cache, tmp_path)
        there = Device(("sh", "-c", last), sys.executable)
        contract = neutral(version.contract)
        devices_ = {TARGET.name: there}
        measurer = Measurer(cache, OciBundleWriter(), HOST, contract, devices=devices_)
        return measurer.measure(measurer.subject(TARGET, study.original), study.tuning)

    return measure


@pytest.mark.parametrize(
    ("signal", "said"),
    [("SEGV", "crashed with signal 11"), ("KILL", "more memory than the device")],
)
def test_an_engine_that_crashes_there_costs_the_candidate_and_not_the_build(measured, signal, said):
    with pytest.raises(CandidateError, match=said):
        measured(f"cat > /dev/null; sh -c 'kill -{signal} $$'; exit $?")


def test_an_answer_that_is_cut_off_is_no_answer(measured):
    with pytest.raises(UnavailableError, match="something else came back") as caught:
        measured('eval "$0" | head -c 2000')
    assert "must have room" in caught.value.hint


def test_another_kind_of_device_is_refused(tmp_path):
    with pytest.raises(UnavailableError, match="device of rpi5: it is x86_64 and lacks some of"):
        devices.reach(HERE, target.find("rpi5"), Processes(), tmp_path)


def test_a_device_of_a_target_that_is_not_built_is_refused(model, tmp_path):
    registry, version = model
    with pytest.raises(UsageError, match="a device of rpi5, which is not built"):
        build(
            registry, version, [TARGET], tmp_path / "out", writer=OciBundleWriter(),
            cache=Cache(tmp_path / "cache"), host=HOST, devices={"rpi5": HERE},
        )  # fmt: skip


@pytest.mark.parametrize("text", ["rpi5", "rpi5=", "=ssh pi@x", "rpi5=ssh 'pi"])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(UsageError, match="--device"):
        devices.parse(text, "python3")


def test_a_device_is_named_with_its_command():
    name, device = devices.parse("rpi5=ssh -p 2222 pi@kitchen", "/opt/e/bin/python")
    assert (name, device.command) == ("rpi5", ("ssh", "-p", "2222", "pi@kitchen"))
    assert device.python == "/opt/e/bin/python"
