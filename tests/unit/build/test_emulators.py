"""Which emulator is found, and what is said of one that would not do."""

import os
import shutil
import sys
from pathlib import Path

import msgspec
import pytest

from edgekit.build import emulate, target
from edgekit.build.cache import Cache
from edgekit.build.host import Host
from edgekit.contracts import codec
from edgekit.contracts.errors import UnavailableError

HOST = Host("x86_64", frozenset({"avx2", "fma"}), "test processor")
RPI5, HASWELL = target.find("rpi5"), target.find("x86-64-v3")
SITE = "opt/edgekit/site"


@pytest.fixture(autouse=True)
def _no_root_by_name(monkeypatch):
    monkeypatch.delenv(emulate.ROOT_ENV, raising=False)


@pytest.fixture
def qemu(tmp_path, monkeypatch):
    """Put a program of a name on an otherwise empty PATH; it answers -version with a text."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, says="$name version 10.0.13 (Debian)", *, then="exit 0"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nname={name}\necho "{says}"\n{then}\n')
        program.chmod(0o755)
        return str(program)

    return put


def root(folder, **changes):
    """A root that is made of a Python and what tells the versions of two packages."""
    packages = {"numpy": "2.4.6", "onnxruntime": "1.32.0"} | changes.pop("packages", {})
    document = emulate.Root(
        arch="aarch64",
        base="sha256:" + "ab" * 32,
        python="usr/bin/python3.11",
        python_version="3.11",
        site=SITE,
    )
    (folder / "usr/bin").mkdir(parents=True)
    (folder / document.python).write_text("")
    for name, version in packages.items():
        info = folder / SITE / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    changed = msgspec.structs.replace(document, **changes)
    (folder / emulate.ROOT_FILE).write_bytes(codec.encode(changed))
    return folder


def found(profile, cache):
    return emulate.find(profile, HOST, cache)


def refused(profile, cache):
    with pytest.raises(UnavailableError) as caught:
        found(profile, cache)
    return caught.value.message, caught.value.hint


def test_a_cpu_of_this_architecture_runs_this_very_interpreter(qemu, tmp_path):
    program = qemu("qemu-x86_64", "$name version 7.2.22")  # old enough for ARM to be refused
    emulator = found(HASWELL, tmp_path)
    assert emulator.facts == "qemu-x86_64 7.2.22 -cpu Haswell"
    assert emulator.prepared(tmp_path) == ([program, "-cpu", "Haswell", sys.executable], None)


def test_a_static_build_will_do(qemu, tmp_path):
    program = qemu("qemu-x86_64-static", "qemu-x86_64 version 9.1.0")
    assert found(HASWELL, tmp_path).command[0] == program


@pytest.mark.parametrize(
    ("says", "then", "reason"),
    [
        ("$name version 7.2.22", "exit 0", "is version 7.2.22, too old"),
        ("$name version 9.2.4", "exit 0", "is version 9.2.4, too old"),
        ("$name version 10.0.13", "exit 1", "does not start"),
        ("hello", "exit 0", "does not say its version"),
    ],
)
def test_a_qemu_that_would_not_do_comes_with_its_mend(qemu, tmp_path, says, then, reason):
    root(tmp_path / "emulators" / "aarch64")
    qemu("qemu-aarch64", says, then=then)
    message, hint = refused(RPI5, tmp_path)
    assert reason in message
    assert hint.startswith("install qemu-user 10 or newer")


def test_no_qemu_at_all(qemu, tmp_path):
    assert refused(RPI5, tmp_path)[0] == "no qemu-aarch64 on this machine"
    assert refused(HASWELL, tmp_path) == ("no qemu-x86_64 on this machine", "install qemu-user")


def test_a_foreign_cpu_runs_the_python_of_its_root(qemu, tmp_path, monkeypatch):
    program = qemu("qemu-aarch64")
    folder = root(tmp_path / "emulators" / "aarch64")
    emulator = found(RPI5, tmp_path)
    assert emulator.facts == (
        "qemu-aarch64 10.0.13 -cpu cortex-a76, Python 3.11, numpy 2.4.6, onnxruntime 1.32.0, "
        "base abababababab"
    )
    monkeypatch.setenv("PYTHONHOME", "/of/this/machine")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    command, environment = emulator.prepared(tmp_path)
    python = str(folder / "usr/bin/python3.11")
    assert command == [program, "-cpu", "cortex-a76", "-L", str(folder), python, "-S"]
    assert environment["SOURCE_DATE_EPOCH"] == "7"
    assert "PYTHONHOME" not in environment
    site, code = environment["PYTHONPATH"].split(os.pathsep)
    assert site == str(folder / SITE)
    # And no package beside them, which would be one for this machine.
    assert sorted(path.name for path in Path(code).iterdir()) == ["edgekit", "edgekit_runtime"]
    assert (Path(code) / "edgekit/build/emulate.py").samefile(emulate.__file__)


def test_a_root_of_another_name(qemu, tmp_path, monkeypatch):
    qemu("qemu-aarch64")
    monkeypatch.setenv(emulate.ROOT_ENV, str(root(tmp_path / "mine")))
    assert str(tmp_path / "mine") in found(RPI5, tmp_path / "cache").command


def test_another_root_is_another_emulator(qemu, tmp_path, monkeypatch):
    """Facts are keys: a result of one root is never taken for that of another."""
    qemu("qemu-aarch64")
    other = "sha256:" + "cd" * 32
    roots = {
        "one": {},
        "two": {"packages": {"numpy": "2.4.7"}},
        "three": {"packages": {"onnxruntime": "1.33.0"}},
        "four": {"python_version": "3.12"},
        "five": {"base": other},
    }
    facts = set()
    for name, changes in roots.items():
        monkeypatch.setenv(emulate.ROOT_ENV, str(root(tmp_path / name, **changes)))
        facts.add(found(RPI5, tmp_path).facts)
    assert len(facts) == len(roots)
    assert not any(str(tmp_path) in each for each in facts)  # nor does a record name this machine


def test_a_root_changed_by_hand_is_seen(qemu, tmp_path):
    qemu("qemu-aarch64")
    folder = root(tmp_path / "emulators" / "aarch64")
    before = found(RPI5, tmp_path).facts
    info = folder / SITE / "numpy-2.4.6.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("2.4.6", "2.5.0"))
    assert found(RPI5, tmp_path).facts == before.replace("2.4.6", "2.5.0")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, "holds none"),
        (lambda folder: (folder / emulate.ROOT_FILE).unlink(), "holds none"),
        (lambda folder: (folder / emulate.ROOT_FILE).write_text("{}"), "edgekit-root.json"),
        (lambda folder: (folder / "usr/bin/python3.11").unlink(), "has no usr/bin/python3.11"),
        (lambda folder: shutil.rmtree(folder / SITE), "has no numpy and no onnxruntime"),
    ],
)
def test_a_root_that_would_not_do_comes_with_its_mend(qemu, tmp_path, spoil, reason):
    qemu("qemu-aarch64")
    spoil(root(tmp_path / "emulators" / "aarch64"))
    message, hint = refused(RPI5, tmp_path)
    assert message.startswith("no usable root file system of aarch64")
    assert reason in message
    assert "edgekit targets emulator rpi5 --base-rootfs" in hint


def test_a_root_of_another_architecture(qemu, tmp_path, monkeypatch):
    qemu("qemu-aarch64")
    monkeypatch.setenv(emulate.ROOT_ENV, str(root(tmp_path / "x86", arch="x86_64")))
    assert "x86 is x86_64" in refused(RPI5, tmp_path)[0]


def test_what_was_seen_to_work_is_not_tried_again_but_a_failure_is(qemu, tmp_path):
    root(tmp_path / "emulators" / "aarch64")
    cache, program = Cache(tmp_path), Path(qemu("qemu-aarch64"))
    version = "case $1 in -version) echo qemu-aarch64 version 10.1.0; exit 0;; esac"
    script = f'#!/bin/sh\n{version}\necho tried >>"$0.log"\n'
    log = program.with_name("qemu-aarch64.log")
    program.write_text(f"{script}exit 3\n")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="exit status 3"):
            emulate.ready(RPI5, HOST, cache)
    assert log.read_text().split() == ["tried"] * 2
    program.write_text(f"{script}echo aarch64 asimd asimddp\n")
    for _ in range(2):
        emulate.ready(RPI5, HOST, cache)
    assert log.read_text().split() == ["tried"] * 3


@pytest.mark.parametrize(
    ("profile", "machine", "isa", "same"),
    [
        ("rpi5", "aarch64", ("asimd", "asimddp", "fp"), True),
        ("rpi5", "aarch64", ("asimd", "fp"), False),
        ("rpi4", "aarch64", ("asimd", "fp"), True),
        ("rpi5", "x86_64", ("asimd", "asimddp"), False),
        ("x86-64-v3", "x86_64", (), True),  # qemu shows this machine's flags there
        ("x86-64-v3", "aarch64", (), False),
    ],
)
def test_what_ran_says_whether_it_was_the_target(profile, machine, isa, same):
    assert (emulate.unlike(target.find(profile), machine, isa) is None) is same
