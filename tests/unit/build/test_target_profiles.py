"""Target profiles: shipped ones are sound, others are refused by field."""

from importlib import resources

import pytest

from edgekit.build import host, jetpack, target
from edgekit.build.host import Host
from edgekit.build.target import Validation
from edgekit.contracts.errors import BadInputError, UsageError

RPI5 = (resources.files("edgekit.build") / "targets" / "rpi5.toml").read_text()
WITHOUT_EMULATOR = RPI5.replace('emulator = "cortex-a76"\n', "")


def test_shipped_profiles():
    assert set(target.shipped()) == {
        "arm64-generic",
        "jetson-nano",
        "jetson-orin",
        "jetson-thor",
        "jetson-xavier",
        "rpi4",
        "rpi5",
        "x86-64-v3",
        "x86-64-v3-openvino",
        "x86-64-vnni",
        "x86-64-vnni-openvino",
    }


def test_every_jetson_has_a_release_that_runs_on_its_gpu():
    found = {n: p for n, p in target.shipped().items() if p.jetpack}
    assert {n for n, p in found.items() if p.agent} == {"jetson-orin", "jetson-thor"}
    assert not found["jetson-nano"].tensorrt_int8
    known = jetpack.releases()
    for profile in found.values():
        assert all(profile.sm in known[version].sm for version in profile.jetpack)
        old = any(int(known[v].python.split(".")[1]) < 10 for v in profile.jetpack)
        assert old is not profile.agent


ORIN = (resources.files("edgekit.build") / "targets" / "jetson-orin.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"6.2"', '"9.9"', "jetpack: '9.9' is not known"),
        ("sm = 87", "sm = 53", "JetPack 6.0 does not run on 53"),
        ('"6.0", "6.2"', "", "jetpack: is needed"),
    ],
)
def test_wrong_jetson_fields_are_named(old, new, message):
    assert old in ORIN
    with pytest.raises(BadInputError, match=message):
        target.parse(ORIN.replace(old, new).encode(), "mine")


def test_own_profiles_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_TARGETS", str(tmp_path))
    assert set(target.known()) == set(target.shipped())
    (tmp_path / "board.toml").write_text(RPI5.replace('name = "rpi5"', 'name = "my-board"'))
    assert target.find("my-board").cores == 4
    (tmp_path / "twin.toml").write_text(RPI5)
    with pytest.raises(BadInputError, match="'rpi5' is taken"):
        target.known()
    monkeypatch.setenv("EDGEKIT_TARGETS", str(tmp_path / "none"))
    with pytest.raises(BadInputError, match="cannot read"):
        target.find("rpi5")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 4", "cores = 0", "cores: 0"),
        ("cores = 4", "cores = 4\ncoverage_min = 2", "coverage_min: 2"),
        ("cores = 4", "kores = 4", "kores"),
        ("cores = 4", "cores = 'many'", r"cores"),
        ('arch = "aarch64"', 'arch = "mips"', r"arch"),
        ('"quality", "size"', '"quality", "beauty"', r"gates"),
        ('"quality", "size"', '"size"', "gates"),
        ('"quality", "size"', '"quality", "latency"', "latency needs validation_required"),
        (">=1.20", ">=one", "engine_versions"),
        ('engine = "onnxruntime"', 'engine = "other"', "engine: 'other'"),
        ("cores = 4", "cores = 4\nopenvino_versions = '>=2025'", "openvino_versions: '>=2025'"),
        ("cores = 4", "cores = 4\nopenvino_versions = 'new'", "openvino_versions"),
        ("cores = 4", "cores = ", "profile mine"),
        ('name = "rpi5"', 'name = "../rpi5"', "not a valid name"),
    ],
)
def test_wrong_fields_are_named(old, new, message):
    assert old in RPI5
    with pytest.raises(BadInputError, match=message):
        target.parse(RPI5.replace(old, new).encode(), "mine")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"quality", "size"', '"quality", "emulated"'),
        ('required = "none"', 'required = "emulated"'),
    ],
)
def test_who_asks_for_emulation_has_to_name_a_cpu(old, new):
    with pytest.raises(BadInputError, match="emulator: is needed"):
        target.parse(WITHOUT_EMULATOR.replace(old, new).encode(), "mine")
    assert target.parse(RPI5.replace(old, new).encode(), "mine").emulator == "cortex-a76"


def test_unknown_target_suggests_close_names():
    with pytest.raises(UsageError) as caught:
        target.find("rpi")
    assert caught.value.hint == "did you mean rpi5 or rpi4?"
    with pytest.raises(UsageError) as caught:
        target.find("zzz")
    assert "x86-64-v3" in caught.value.hint


def test_own_profile_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RPI5.replace('name = "rpi5"', 'name = "my-board"'))
    assert target.find(str(path)).name == "my-board"
    with pytest.raises(BadInputError, match="cannot read"):
        target.find(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("arch", "flags", "native"),
    [
        ("x86_64", "avx2 fma", {"x86-64-v3"}),
        ("x86_64", "avx2 fma avx_vnni", {"x86-64-v3", "x86-64-vnni"}),
        ("x86_64", "avx2 fma avx512_vnni", {"x86-64-v3", "x86-64-vnni"}),
        ("x86_64", "sse2", set()),
        ("aarch64", "asimd", {"arm64-generic", "rpi4"}),
        ("aarch64", "asimd asimddp", {"arm64-generic", "rpi4", "rpi5"}),
        ("riscv64", "", set()),
    ],
)
def test_native_means_architecture_and_every_instruction(arch, flags, native):
    machine = Host(arch, frozenset(flags.split()), "cpu")
    native = native | {f"{name}-openvino" for name in native if name.startswith("x86")}
    found = {n for n, p in target.shipped().items() if machine.validation(p) is Validation.NATIVE}
    assert found == native


def test_emulation_can_be_asked_for_where_a_cpu_is_named():
    asked = target.emulating(target.find("x86-64-v3"))
    assert asked.gates[-1] is target.Gate.EMULATED
    assert target.emulating(asked) == asked
    with pytest.raises(UsageError, match="jetson-orin: there is no CPU model"):
        target.emulating(target.find("jetson-orin"))


def test_cpuinfo_of_both_architectures():
    x86 = ["model name\t: EPYC\n", "flags\t\t: fpu avx2\n", "flags\t\t: other\n"]
    assert host.parse_cpuinfo(x86) == (frozenset({"fpu", "avx2"}), "EPYC")
    assert host.parse_cpuinfo(["Features\t: fp asimd\n"]) == (frozenset({"fp", "asimd"}), "")
