"""Bundle and layout writer: deterministic, atomic, all or nothing."""

import errno
import os

import pytest

from edgekit.build.ports import BundleContent, BundleHead
from edgekit.build.record import RECORD_FILE
from edgekit.build.report import REPORT_FILE
from edgekit.contracts.bundle import Role
from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit.contracts.oci import LayoutReader
from edgekit.package.bundle import OciBundleWriter, write_bundle

HEAD = BundleHead("waves", "1", "rpi5", "int8", "onnxruntime", ">=1.20")


def contents(model=b"model bytes"):
    return [
        BundleContent("model.onnx", Role.MODEL, model),
        BundleContent("contract.json", Role.CONTRACT, b"{}"),
    ]


def tree(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_written_bundle_can_be_read_and_verified(tmp_path):
    (tmp_path / "m").write_bytes(b"from a file")
    written = write_bundle(tmp_path / "out", HEAD, contents(tmp_path / "m"))
    reader = LayoutReader(tmp_path / "out")
    assert reader.resolve("waves-1-rpi5") == written.digest
    manifest = reader.manifest(written.digest)
    sizes = [reader.verify_blob(layer).stat().st_size for layer in manifest.layers]
    assert sizes == [11, 2]
    assert written.size > sum(sizes)


def test_equal_inputs_give_equal_folders_in_any_order(tmp_path):
    other = BundleHead("waves", "1", "rpi4", "int8", "onnxruntime", ">=1.20")
    for folder, heads in (("a", (HEAD, other)), ("b", (other, HEAD))):
        for head in heads:
            write_bundle(tmp_path / folder, head, contents())
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert len(LayoutReader(tmp_path / "a").index().manifests) == 2


def test_a_tag_moves_and_can_be_withdrawn(tmp_path):
    writer = OciBundleWriter()
    first = writer.write(tmp_path / "out", HEAD, contents())
    second = writer.write(tmp_path / "out", HEAD, contents(b"other"))
    assert first.digest != second.digest
    assert LayoutReader(tmp_path / "out").resolve("waves-1-rpi5") == second.digest
    writer.withdraw(tmp_path / "out", "waves", "1", "rpi5")
    assert LayoutReader(tmp_path / "out").index().manifests == ()
    writer.withdraw(tmp_path / "none", "waves", "1", "rpi5")
    assert not (tmp_path / "none").exists()


def test_unsafe_paths_are_refused_and_leave_nothing(tmp_path):
    bad = [*contents(), BundleContent("../evil", Role.CARD, b"")]
    with pytest.raises(BadInputError, match="unsafe"):
        write_bundle(tmp_path / "a" / "out", HEAD, bad)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_not_written_to(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInputError, match="not empty and not an OCI layout"):
        write_bundle(tmp_path, HEAD, contents())
    assert list(tree(tmp_path)) == ["thesis.txt"]


def test_what_a_build_without_bundles_left_is_no_foreign_folder(tmp_path):
    for name in (RECORD_FILE, REPORT_FILE):
        (tmp_path / name).write_text("of a build whose gates all failed")
    write_bundle(tmp_path, HEAD, contents())
    assert {"oci-layout", RECORD_FILE, REPORT_FILE} <= set(tree(tmp_path))


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fail_at", range(1, 13))
def test_a_full_disk_leaves_the_layout_as_it_was(tmp_path, monkeypatch, fail_at, existing):
    """The disk fills up at the n-th fsync, for every n of the write."""
    out = tmp_path / "out"
    if existing:
        write_bundle(out, HEAD, contents())
    before = tree(tmp_path)
    calls, real = 0, os.fsync

    def fsync(handle):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    other = BundleHead("waves", "2", "rpi5", "int8", "onnxruntime", ">=1.20")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        try:
            write_bundle(out, other, contents(b"new"))
            failed = False
        except ResourceError:
            failed = True
    if failed:
        # After the index was renamed only its folder's fsync can fail: the new state is whole too.
        left = tree(tmp_path)
        index = left.get("out/index.json")
        assert left == before or (index != before.get("out/index.json") and b"waves-2" in index)
        assert not [name for name in left if name.endswith(".tmp")]
        for entry in LayoutReader(out).index().manifests if (out / "oci-layout").exists() else ():
            manifest = LayoutReader(out).manifest(entry.digest)
            for layer in (manifest.config, *manifest.layers):
                LayoutReader(out).verify_blob(layer)
    written = write_bundle(out, other, contents(b"new"))
    assert LayoutReader(out).resolve("waves-2-rpi5") == written.digest
