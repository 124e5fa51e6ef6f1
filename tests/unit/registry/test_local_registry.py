"""Local registry: immutable, content-addressed, unharmed by crashes and full disks."""

import contextlib
import errno
import os

import numpy as np
import pytest
from buildkit import graphs

from edgekit.contracts.errors import BadInputError, ResourceError, UsageError
from edgekit.registry.local import LocalRegistry
from edgekit.registry.model import Split
from edgekit.registry.register import Sources, register


@pytest.fixture
def registry(tmp_path):
    return LocalRegistry(tmp_path / "registry")


@pytest.fixture
def files(tmp_path):
    return graphs.save(graphs.classifier(), tmp_path / "m.onnx"), graphs.save_data(
        tmp_path / "d.npz"
    )


def add(registry, files, name="waves", **options):
    model, data = files
    return register(registry, name, model, Sources(data=str(data)), **options)


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_same_content_is_the_same_version(registry, files):
    one, two = add(registry, files), add(registry, files)
    assert (one.version.version, one.created, two.created) == ("1", True, False)
    assert two.version == one.version
    assert {entry.split for entry in one.version.datasets} == set(Split)


def test_versions_are_the_next_integer_or_the_users_own(registry, files):
    add(registry, files)
    assert add(registry, files, drop_max=0.03).version.version == "2"
    assert add(registry, files, version="rc1").version.version == "rc1"
    assert add(registry, files, drop_max=0.04).version.version == "3"
    assert [v.version for v in registry.versions("waves")] == ["1", "2", "rc1", "3"]
    assert registry.get("waves").version == "3"


def test_other_content_under_an_existing_version_is_refused(registry, files):
    add(registry, files, version="7")
    before = registry.get("waves", "7")
    with pytest.raises(BadInputError, match="waves version 7 exists with other content"):
        add(registry, files, version="7", drop_max=0.05)
    assert registry.versions() == [before]


def test_unknown_names_list_what_there_is(registry, files):
    with pytest.raises(BadInputError, match="'waves' is not in the registry"):
        registry.get("waves")
    add(registry, files)
    with pytest.raises(BadInputError) as caught:
        registry.get("waves", "9")
    assert caught.value.hint == "it has: 1"


@pytest.mark.parametrize("name", ["", "Waves", "a/b", "..", "x" * 65])
def test_bad_names_store_nothing(registry, files, name):
    with pytest.raises(BadInputError, match="not a valid name"):
        add(registry, files, name=name)
    assert not registry.root.exists()


def test_bad_data_stores_nothing(registry, files, tmp_path):
    x, labels = graphs.waves()
    x[3, 0] = np.nan
    np.savez(tmp_path / "bad.npz", x=x, labels=labels)
    with pytest.raises(BadInputError, match="NaN"):
        add(registry, (files[0], tmp_path / "bad.npz"))
    assert not registry.root.exists()


def test_too_small_an_evaluation_set_stores_nothing(registry, files, tmp_path):
    with pytest.raises(BadInputError, match="at least 197 samples"):
        add(registry, (files[0], graphs.save_data(tmp_path / "few.npz", 200)))
    assert not registry.root.exists()


def test_contradicting_arguments(registry, files):
    model, data = files
    both = Sources(data=str(data), splits={Split.EVALUATION: str(data)})
    with pytest.raises(UsageError, match="either one data set or the splits"):
        register(registry, "waves", model, both)
    with pytest.raises(BadInputError, match="no data"):
        register(registry, "waves", model, Sources())


def test_stored_data_sets_can_be_used_by_digest(registry, files):
    version = add(registry, files).version
    given = {split: version.dataset(split).digest for split in Split}
    again = register(registry, "waves", files[0], Sources(splits=given))
    assert again.version.datasets == version.datasets
    assert not again.created


def test_corrupted_blob_is_found_when_it_is_used(registry, files):
    version = add(registry, files).version
    path = registry.blob(version.file().sha256)
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadInputError, match="corrupted"):
        registry.blob(version.file().sha256)


def test_damaged_index_is_a_one_line_error(registry, files):
    add(registry, files)
    (registry.root / "index.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(BadInputError, match=r"index\.sqlite"):
        registry.versions()


@pytest.mark.parametrize("after", range(1, 14, 2))
def test_a_full_disk_leaves_no_version_and_no_partial_file(registry, files, monkeypatch, after):
    """The disk fills up at the n-th fsync; whatever was written is whole, and a retry succeeds."""
    calls, real = 0, os.fsync

    def fsync(handle):
        nonlocal calls
        calls += 1
        if calls == after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.suppress(ResourceError):
        add(registry, files)
    complete = calls < after  # fewer calls than that: the disk never filled up
    assert bool(registry.versions()) == complete
    assert not [name for name in tree(registry.root) if name.endswith(".tmp")]
    monkeypatch.undo()
    assert add(registry, files).version.version == "1"
