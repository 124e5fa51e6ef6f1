"""Parts of images: normalised tars, what a base may hold, which wheels fit it."""

import gzip
import tarfile

import pytest
from packagekit import roots

from edgekit.contracts.errors import BadInputError, ResourceError, UnavailableError
from edgekit.package import feasible, rootfs, tar, wheels
from edgekit.package.rootfs import BaseFacts

BOOKWORM = BaseFacts(arch="arm64", python=(3, 11), python_path="/usr/bin/python3.11", glibc=(2, 36))


def test_layers_do_not_depend_on_order_time_or_owner(tmp_path):
    members = roots.base()
    later = [roots.member(i.name, d, type=i.type, mode=i.mode, linkname=i.linkname, mtime=9,
                          gid=4) for i, d in reversed(members)]  # fmt: skip
    facts = []
    for name, content in (("a", members), ("b", later)):
        with rootfs.opened(roots.write(tmp_path / f"{name}.tar", content)) as root:
            facts.append(tar.write(root.entries, tmp_path / name))
    assert facts[0] == facts[1]
    with tarfile.open(tmp_path / "a") as layer:
        found = {info.name: info for info in layer}
    assert {info.mtime for info in found.values()} == {0}
    assert {(i.uid, i.gid, i.uname) for i in found.values()} == {(0, 0, "")}
    assert found["usr/bin/python3.11"].mode == 0o755  # no setuid
    assert "usr/share/doc/libc6/copyright" in found
    assert not {"usr/share/doc/libc6/changelog.gz", "dev/null"} & set(found)
    assert gzip.decompress((tmp_path / "a").read_bytes())[257:262] == b"ustar"


def test_facts_of_a_base(tmp_path):
    with rootfs.opened(roots.write(tmp_path / "root.tar", roots.base())) as root:
        assert root.facts == BOOKWORM


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (roots.member("../evil", b"x"), "leaves the root"),
        (roots.member("/etc/passwd", b"x"), "leaves the root"),
        (roots.member("a/../../b", b"x"), "leaves the root"),
        (roots.member("a", type=tarfile.SYMTYPE, linkname="../../etc"), "leaves the root"),
        (roots.member("a", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "leaves the root"),
        (roots.member("a", type=tarfile.LNKTYPE, linkname="gone"), "not in it"),
        (roots.member("etc/sda", type=tarfile.BLKTYPE), "is a device or pipe"),
        (roots.member("etc/pipe", type=tarfile.FIFOTYPE), "is a device or pipe"),
        (roots.member("usr/bin/python3/x", b"x"), "not a folder"),
    ],
)
def test_what_a_base_must_not_hold(tmp_path, bad, problem):
    path = roots.write(tmp_path / "root.tar", [*roots.base(), bad])
    with pytest.raises(BadInputError, match=problem), rootfs.opened(path):
        pass


def test_bombs_and_cut_tars_are_refused(tmp_path):
    path = roots.write(tmp_path / "root.tar", [*roots.base(), roots.member("big", b"0" * 99_999)])
    with pytest.raises(ResourceError, match="unpacks to over"), rootfs.opened(path, bytes_max=9999):
        pass
    for cut in (3000, 4096, 50_000):
        (tmp_path / "cut.tar").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(BadInputError, match="whole tar"), rootfs.opened(tmp_path / "cut.tar"):
            pass
    (tmp_path / "text.tar").write_text("hello")
    with pytest.raises(BadInputError, match="whole tar"), rootfs.opened(tmp_path / "text.tar"):
        pass


def test_which_wheel_fits():
    tags = feasible.supported(BOOKWORM)
    files = [
        "x-1-cp311-cp311-manylinux_2_39_aarch64.whl",
        "x-1-cp311-cp311-manylinux_2_28_x86_64.whl",
        "x-1-cp311-cp311-musllinux_1_2_aarch64.whl",
        "x-1-cp310-cp310-manylinux_2_28_aarch64.whl",
    ]
    assert feasible.best(files, tags) is None
    files += ["x-1-py3-none-any.whl", "x-1-cp38-abi3-manylinux2014_aarch64.whl"]
    assert feasible.best(files, tags) == files[-1]
    files.append("x-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl")
    assert feasible.best([*files, "broken.whl"], tags) == files[-1]


@pytest.mark.parametrize(
    ("facts", "problem", "mend"),
    [
        (BaseFacts(arch="amd64"), "is arm64, the base is amd64", "--architectures=arm64"),
        (BaseFacts(arch="arm64"), "no Python 3", "python3-minimal"),
        (BaseFacts(arch="arm64", python=(3, 11), musl=True), "no glibc but musl", "Debian"),
    ],
)
def test_bases_that_cannot_do(facts, problem, mend):
    with pytest.raises(BadInputError, match=problem) as caught:
        feasible.check_base(facts, "arm64", "rpi5")
    assert mend in caught.value.hint


def test_a_missing_wheel_comes_with_its_mend():
    old = BaseFacts(arch="arm64", python=(3, 11), python_path="/p", glibc=(2, 31))
    error = feasible.infeasible("openvino 2026.4", old, "openvino", 35, ())
    assert "needs glibc 2.35" in error.message
    assert "ubuntu:22.04" in error.hint
    error = feasible.infeasible("x 1", old, "x", None, (12, 13))
    assert "Python 3.12 or 3.13" in error.message
    assert isinstance(wheels._failure("ERROR: no network", old, "x"), UnavailableError)


def test_pins_are_those_of_the_target():
    found = wheels.pins("edgekit-ml", "runtime", wheels.environment(BOOKWORM))
    assert {"numpy", "onnxruntime", "protobuf", "msgspec"} <= set(found)
    assert not {"edgekit-ml", "onnx", "fastapi", "pytest", "tomli", "colorama"} & set(found)
