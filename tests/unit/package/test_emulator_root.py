"""Roots for emulators: what a base's layers leave standing, and nothing outside the folder."""

import tarfile
import zipfile

import pytest
from packagekit import bases, roots

from edgekit.build import emulate, target
from edgekit.build.cache import Cache
from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.package import emulator, image, oci_base, wheels

RPI5 = target.find("rpi5")


@pytest.fixture
def layered(tmp_path):
    """A base of an image whose layers are made of members."""

    def opened(*layers):
        unpacked = [bases.plain(each) for each in layers]
        bases.write(tmp_path / "base", unpacked=unpacked)
        return oci_base.opened(
            f"{tmp_path}/base", "arm64", Cache(tmp_path / "cache"), lambda _: None
        )

    return opened


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def laid_out(base, folder):
    folder.mkdir()
    emulator.lay_out(base.layers, folder)
    return folder


def test_layers_are_laid_over_each_other(layered, tmp_path):
    below = [
        *roots.base(),
        roots.member("opt/old/gone", b"1"),
        roots.member("etc/replaced", b"below"),
        roots.member("etc/removed", b"1"),
        roots.member("usr/bin/tool", b"tool", mode=0o4755),
        roots.member("usr/bin/also", type=tarfile.LNKTYPE, linkname="usr/bin/tool", mode=0o4755),
    ]
    above = [
        roots.member("opt/old/.wh..wh..opq"),
        roots.member("opt/old/new", b"2"),
        roots.member("etc/.wh.removed"),
        roots.member("etc/replaced", b"above"),
        roots.member("usr/bin/tool", b"newer"),
    ]
    folder = laid_out(layered(below, above), tmp_path / "root")
    assert names(folder / "opt/old") == ["new"]
    assert (folder / "etc/replaced").read_text() == "above"
    assert not (folder / "etc/removed").exists()
    assert (folder / "usr/bin/tool").read_text() == "newer"
    assert (folder / "usr/bin/also").read_text() == "tool"  # what it was linked to in its layer
    assert (folder / "usr/bin/also").stat().st_mode & 0o7777 == 0o755  # and no setuid
    assert not (folder / "dev/null").exists()


def test_links_stay_inside_the_root(layered, tmp_path):
    """An emulator's opens are this machine's: /usr/bin/mawk would be ours."""
    members = [
        *roots.base(),
        roots.member("usr/bin/mawk", b"arm"),
        roots.member("usr/bin/env", type=tarfile.SYMTYPE, linkname="/usr/bin/mawk"),
        roots.member("init", type=tarfile.SYMTYPE, linkname="/usr/bin/mawk"),
    ]
    folder = laid_out(layered(members), tmp_path / "root")
    for name in ("etc/alternatives/awk", "usr/bin/env", "init"):
        assert (folder / name).read_text() == "arm"
        assert (folder / name).resolve().is_relative_to(folder)
    assert (folder / "usr/bin/python3").readlink().name == "python3.11"


@pytest.mark.parametrize("link", ["/etc", "usr"])
def test_nothing_is_written_through_a_link(layered, tmp_path, link):
    members = [*roots.base(), roots.member("way", type=tarfile.SYMTYPE, linkname=link)]
    with pytest.raises(BadInputError, match="below 'way', not a folder"):
        laid_out(layered(members, [roots.member("way/in", b"x")]), tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


@pytest.fixture
def make(tmp_path, monkeypatch):
    """`emulator.make` from a root's tar with one made-up wheel, so that no index is asked."""
    wheel = tmp_path / "numpy-9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("numpy/__init__.py", "version = 9\n")
        archive.writestr("numpy-9.dist-info/METADATA", "Name: numpy\nVersion: 9\n")
    monkeypatch.setattr(wheels, "fetch", lambda *_: [wheel])
    builder = image.Builder(Cache(tmp_path / "cache"), tmp_path, epoch=0, on_step=lambda _: None)

    def run(members, out):
        base = builder.rootfs(roots.write(tmp_path / "root.tar", members))
        emulator.make(base, RPI5, tmp_path / "wheels", out)

    return run


def test_a_root_says_what_it_is(make, tmp_path):
    make(roots.base(), tmp_path / "out")
    found = codec.read(emulate.Root, tmp_path / "out" / emulate.ROOT_FILE)
    assert (found.arch, found.python, found.python_version) == (
        "aarch64",
        "usr/bin/python3.11",
        "3.11",
    )
    assert (tmp_path / "out" / found.python).read_bytes() == b"#!python"
    assert (tmp_path / "out" / found.site / "numpy/__init__.py").read_text() == "version = 9\n"


def test_roots_that_differ_in_times_alone_are_one(make, tmp_path):
    later = [(info, data) for info, data in roots.base()]
    for info, _ in later:
        info.mtime += 1000
    make(roots.base(), tmp_path / "one")
    make(later, tmp_path / "two")
    make([*roots.base(), roots.member("etc/more", b"x")], tmp_path / "three")
    files = [(tmp_path / name / emulate.ROOT_FILE).read_bytes() for name in ("one", "two", "three")]
    assert files[0] == files[1] != files[2]


def test_a_new_root_replaces_the_old_one_and_a_failure_leaves_it(make, tmp_path, monkeypatch):
    out = tmp_path / "roots" / "out"
    make([*roots.base(), roots.member("etc/old", b"x")], out)
    (out / "etc/old").unlink()
    make(roots.base(), out)
    make([*roots.base(), roots.member("etc/new", b"x")], out)
    assert (out / "etc/new").exists()
    before = sorted(out.rglob("*"))
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"no zip")
    monkeypatch.setattr(wheels, "fetch", lambda *_: [broken])
    with pytest.raises(BadInputError, match="not a wheel"):
        make(roots.base(), out)
    assert sorted(out.rglob("*")) == before
    assert names(out.parent) == ["out"]


def test_a_folder_of_something_else_is_never_replaced(make, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(UsageError, match="is no root of an emulator"):
        make(roots.base(), tmp_path / "home")
    assert (tmp_path / "home" / "letter").read_text() == "dear"


def test_a_base_of_another_architecture_is_refused(make, tmp_path):
    with pytest.raises(BadInputError, match="target rpi5 is arm64, the base is amd64"):
        make(roots.base("amd64"), tmp_path / "out")
