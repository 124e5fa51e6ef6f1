"""Verify, unpack and compare bundles: every byte checked, nothing left behind on failure."""

import errno
import os

import msgspec
import pytest

from edgekit.build.ports import BundleContent, BundleHead
from edgekit.contracts import bundle
from edgekit.contracts.bundle import BundleFile, Role
from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit.contracts.oci import LayoutReader
from edgekit.package import diff, reader
from edgekit.package.bundle import write_bundle


def head(version="1"):
    return BundleHead("waves", version, "rpi5", "int8", "onnxruntime", ">=1.20")


def write(layout, version="1", **changes):
    files = {
        "model.onnx": (Role.MODEL, b"weights" * 100),
        "contract.json": (Role.CONTRACT, b"{}"),
        "extra/card.md": (Role.CARD, b"# Waves\n"),
    } | changes
    contents = [BundleContent(path, role, data) for path, (role, data) in files.items()]
    return write_bundle(layout, head(version), contents)


@pytest.fixture
def layout(tmp_path):
    write(tmp_path / "layout")
    return tmp_path / "layout"


def test_unpacked_files_are_the_bundles_files(layout, tmp_path):
    found = reader.find(str(layout))
    reader.unpack(found, tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    paths = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert paths == ["bundle.json", "contract.json", "extra/card.md", "model.onnx"]
    assert (out / "model.onnx").read_bytes() == b"weights" * 100
    manifest = msgspec.json.decode((out / "bundle.json").read_bytes(), type=bundle.BundleManifest)
    assert manifest == found.manifest
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_unpack_never_touches_what_exists(layout, tmp_path):
    found = reader.find(str(layout))
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out", "link"):
        with pytest.raises(BadInputError, match="exists already"):
            reader.unpack(found, tmp_path / name)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("fail_at", range(1, 10))
def test_a_full_disk_leaves_nothing_unpacked(layout, tmp_path, monkeypatch, fail_at):
    found, calls, real = reader.find(str(layout)), 0, os.fsync

    def fsync(handle):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        try:
            reader.unpack(found, tmp_path / "out")
            assert fail_at > calls
        except ResourceError:
            # Only the last step, making the rename durable, can fail with the folder in place.
            assert fail_at == calls
            assert not (tmp_path / "out").exists() or (tmp_path / "out/bundle.json").is_file()
    assert {p.name for p in tmp_path.iterdir()} <= {"layout", "out"}


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../../b", "", ".", "a//b", "a/", "a\\b", "a\nb", "./a"]
)
def test_paths_that_leave_the_folder_are_refused(path):
    entry = BundleFile(path=path, role="card", sha256="sha256:" + "0" * 64, size=1)
    manifest = bundle.BundleManifest(
        model="m", version="1", target="t", precision="fp32", engine="e", engine_versions="",
        files=(entry,),
    )  # fmt: skip
    with pytest.raises(BadInputError, match="unsafe or repeated"):
        bundle.validate(manifest)


def test_a_file_cannot_also_be_a_folder(tmp_path):
    with pytest.raises(BadInputError, match=r"'model\.onnx' is a file and the folder of"):
        write(tmp_path / "layout", **{"model.onnx/x": (Role.CARD, b"")})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_wherever_it_is(layout):
    found = reader.find(str(layout))
    for descriptor in found.descriptors:
        path = LayoutReader(layout).blob_path(descriptor.digest)
        whole = path.read_bytes()
        for altered in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], whole + b"x"):
            path.write_bytes(altered)
            with pytest.raises(BadInputError, match="corrupted"):
                reader.find_all(str(layout))
        path.write_bytes(whole)
    assert reader.find_all(str(layout))[0].size == sum(d.size for d in found.descriptors)


def test_diff_counts_what_travels(layout):
    write(
        layout,
        "2",
        **{
            "model.onnx": (Role.MODEL, b"w" * 900),
            "copy.onnx": (Role.CALIBRATION, b"w" * 900),
            "contract.json": (Role.CONTRACT, b"{}"),
        },
    )
    old = reader.find(f"{layout}@waves-1-rpi5")
    new = reader.find(f"{layout}@waves-2-rpi5")
    found = diff.compare(old.manifest, new.manifest, old.descriptors, new.descriptors)
    changes = {each.path: each.change.value for each in found.files}
    assert changes == {
        "model.onnx": "changed",
        "copy.onnx": "added",
        "contract.json": "shared",
        "extra/card.md": "shared",
    }
    assert found.shared_bytes == 2 + 8
    fixed = sum(d.size for d in new.descriptors[:2])
    assert found.transfer_bytes == 900 + fixed  # the copy has the same content: it travels once
    back = diff.compare(new.manifest, old.manifest, new.descriptors, old.descriptors)
    assert {c.path: c.change.value for c in back.files}["copy.onnx"] == "removed"


def test_media_types_are_those_of_the_model_pack_spec(layout):
    oci = LayoutReader(layout).manifest(reader.find(str(layout)).digest)
    assert [layer.media_type.rpartition("model.")[2] for layer in oci.layers] == [
        "weight.v1.raw", "weight.config.v1.raw", "doc.v1.raw",
    ]  # fmt: skip
    assert oci.layers[2].annotations["org.cncf.model.filepath"] == "extra/card.md"
