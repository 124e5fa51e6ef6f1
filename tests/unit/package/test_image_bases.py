"""Images to stand on: from a layout, a tar or a registry; pinned, checked, taken as they are."""

from __future__ import annotations

import gzip
import tarfile

import pytest
from packagekit import bases, roots
from packagekit.servers import serving

from edgekit.build.cache import Cache
from edgekit.contracts.errors import BadInputError, ResourceError, UnavailableError, UsageError
from edgekit.contracts.oci import LayoutReader
from edgekit.package import oci_base, reference, registry, tar, transfer


@pytest.fixture
def take(tmp_path):
    def opened(source, arch="arm64"):
        return oci_base.opened(str(source), arch, Cache(tmp_path / "cache"), lambda _: None)

    return opened


def _pack(layout, path):
    with tarfile.open(path, "w") as archive:
        archive.add(layout, ".")
    return path


@pytest.mark.parametrize("index", [False, True])
def test_a_layout_is_taken_layer_by_layer(tmp_path, take, index):
    bases.write(tmp_path / "base", index=index)
    base = take(f"{tmp_path}/base@base")
    assert (base.facts.arch, base.facts.python, base.facts.glibc) == ("arm64", (3, 11), (2, 36))
    assert base.facts.python_path == "/usr/bin/python3.11"
    assert base.env == tuple(bases.ENV)
    assert [layer.purpose for layer in base.layers] == ["base-1", "base-2"]
    for layer, unpacked in zip(base.layers, bases.layers(), strict=True):
        assert gzip.decompress(layer.path.read_bytes()) == unpacked


def test_a_later_layer_hides_what_lies_below(tmp_path, take):
    only_old = [roots.member("./usr/bin/python3.12", b"x")]
    unpacked = [*bases.layers(), bases.plain(only_old)]
    unpacked.append(bases.plain([roots.member("./usr/bin/.wh.python3.12")]))
    bases.write(tmp_path / "base", unpacked=unpacked)
    assert take(tmp_path / "base").facts.python == (3, 11)


def test_a_layout_in_a_tar_is_the_same_base(tmp_path, take):
    bases.write(tmp_path / "base")
    found = take(_pack(tmp_path / "base", tmp_path / "base.tar"))
    assert found.digest == take(tmp_path / "base").digest
    assert [layer.facts for layer in found.layers] == [
        layer.facts for layer in take(tmp_path / "base").layers
    ]


def test_layers_that_are_not_compressed_stay_so(tmp_path, take):
    unpacked = bases.layers()
    kind = "application/vnd.oci.image.layer.v1.tar"
    bases.write(tmp_path / "base", packed=unpacked, media_type=kind)
    assert {layer.media_type for layer in take(tmp_path / "base").layers} == {kind}


def test_a_registry_is_asked_for_one_platform_by_digest(tmp_path, take):
    found = bases.write(tmp_path / "base", index=True)
    with serving(tmp_path / "store") as served:
        target = reference.parse(f"{served.host}/base:1")
        with registry.Registry(target) as remote:
            layout = LayoutReader(tmp_path / "base")
            transfer.push(remote, layout, found, ["1"], lambda _: None)
        with pytest.raises(UsageError, match="not pinned") as caught:
            take(f"{served.host}/base:1")
        assert caught.value.hint.endswith(f"{served.host}/base@{found}")
        base = take(f"{served.host}/base@{found}")
        before = len(served.seen)
        assert take(f"{served.host}/base@{found}") == base  # from the cache
        assert len(served.seen) == before
        with pytest.raises(BadInputError, match="holds no image for linux/amd64") as caught:
            take(f"{served.host}/base@{found}", arch="amd64")
        assert "linux/arm64" in caught.value.hint
        served.statuses = [503] * 9
        with pytest.raises(UnavailableError):
            take(f"{served.host}/other@{found[:-1]}0")
    assert len(list((tmp_path / "cache" / "bases").iterdir())) == 1  # nothing half of another


def _refused(tmp_path, take, problem, kind=BadInputError, **base):
    bases.write(tmp_path / "base", **base)
    with pytest.raises(kind, match=problem):
        take(tmp_path / "base")


def test_a_base_for_another_machine(tmp_path, take):
    _refused(tmp_path, take, "is for linux/amd64, the target needs linux/arm64", arch="amd64")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (roots.member("../evil", b"x"), "leaves the root"),
        (roots.member("a/../../b", b"x"), "leaves the root"),
        (roots.member("a", type=tarfile.SYMTYPE, linkname="../../etc"), "leaves the root"),
        (roots.member("etc/sda", type=tarfile.BLKTYPE), "is a device or pipe"),
    ],
)
def test_what_a_layer_must_not_hold(tmp_path, take, bad, problem):
    unpacked = [*bases.layers(), bases.plain([bad])]
    _refused(tmp_path, take, f"layer 3.*{problem}", unpacked=unpacked)


def test_a_layer_bomb(tmp_path, take, monkeypatch):
    monkeypatch.setattr(oci_base, "UNPACKED_BYTES_MAX", 1_000_000)
    unpacked = [*bases.layers(), bases.plain([roots.member("zeros", bytes(2_000_000))])]
    _refused(tmp_path, take, "unpacks to over 1000000 bytes", ResourceError, unpacked=unpacked)


def test_a_bomb_behind_the_end_of_the_tar(tmp_path, take, monkeypatch):
    monkeypatch.setattr(oci_base, "UNPACKED_BYTES_MAX", 1_000_000)
    unpacked = [*bases.layers(), bases.plain([]) + bytes(3_000_000)]
    _refused(tmp_path, take, "unpacks to over", ResourceError, unpacked=unpacked)


def test_layers_that_are_cut_or_not_what_was_promised(tmp_path, take):
    unpacked = bases.layers()
    packed = [gzip.compress(each) for each in unpacked]
    _refused(tmp_path / "a", take, "not a whole tar", packed=[packed[0][:-20], packed[1]])
    _refused(tmp_path / "b", take, "not a whole tar", packed=[b"no gzip", packed[1]])
    _refused(tmp_path / "c", take, "does not unpack to what", packed=[packed[0], packed[0]])
    _refused(tmp_path / "d", take, "configuration, at most", packed=packed[:1])
    kind = "application/vnd.oci.image.layer.v1.tar+zstd"
    _refused(tmp_path / "e", take, "zstd is not read", media_type=kind)


def test_an_altered_blob(tmp_path, take):
    bases.write(tmp_path / "base")
    layout = LayoutReader(tmp_path / "base")
    layer = layout.manifest(layout.resolve()).layers[0]
    path = layout.blob_path(layer.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BadInputError, match="does not match its digest"):
        take(tmp_path / "base")


def test_a_tar_that_is_no_layout(tmp_path, take):
    root = roots.write(tmp_path / "root.tar", roots.base())
    with pytest.raises(BadInputError, match="has no place in an OCI layout") as caught:
        take(root)
    assert "--base-rootfs" in caught.value.hint
    (tmp_path / "cut.tar").write_bytes(root.read_bytes()[:100])
    with pytest.raises(BadInputError, match="not a whole tar"):
        take(tmp_path / "cut.tar")
    assert not (tmp_path / "cache" / "bases").exists()


def test_the_layer_type_of_a_docker_base_becomes_the_ocis(tmp_path, take):
    docker = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    bases.write(tmp_path / "base", media_type=docker)
    assert {layer.media_type for layer in take(tmp_path / "base").layers} == {tar.LAYER_MEDIA_TYPE}
