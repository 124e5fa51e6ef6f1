"""The deployment record through power cuts at every byte; the blob store at every operation."""

from __future__ import annotations

import pytest
from agentkit import layouts
from agentkit.disks import FaultyDisk, PowerCut
from agentkit.fetchers import LocalFetcher

from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit_runtime import bundles
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.store import BlobStore
from edgekit_runtime.twocopy import TwoCopy
from edgekit_runtime.verifier import DigestVerifier

DISK = PosixDisk()


def _record(folder, disk=DISK):
    return TwoCopy(disk, folder, "record", DeploymentRecord)


class CutDisk(PosixDisk):
    """Writes the first ``keep`` bytes of an overwrite over what was there, then power goes."""

    def __init__(self, keep: int) -> None:
        self._keep = keep

    def overwrite(self, path, data):
        old = path.read_bytes() if path.exists() else b""
        path.write_bytes(data[: self._keep] + old[self._keep :])
        raise PowerCut


def test_record_cut_at_every_byte_reads_as_before_or_after(tmp_path):
    for name, history in (("empty", 0), ("one", 1), ("two", 2), ("many", 5)):
        template = tmp_path / name
        template.mkdir()
        book = _record(template)
        for gen in range(history):
            book.save(DeploymentRecord(gen=gen + 1))
        files = {path.name: path.read_bytes() for path in template.iterdir()}
        new = DeploymentRecord(gen=99, note="new")
        size = 400
        for keep in range(size):
            for path in template.iterdir():
                path.unlink()
            for file, data in files.items():
                (template / file).write_bytes(data)
            cut = _record(template, CutDisk(keep))
            cut.load()
            with pytest.raises(PowerCut):
                cut.save(new)
            found = _record(template).load()
            gens = {history, 99} if history else {None, 99}
            assert (found.value.gen if found.value else None) in gens
            after = _record(template)
            after.load()
            after.save(DeploymentRecord(gen=100))
            assert _record(template).load().value == DeploymentRecord(gen=100)


def test_two_unreadable_copies_are_moved_aside_and_reported(tmp_path):
    book = _record(tmp_path)
    book.save(DeploymentRecord(gen=1))
    book.save(DeploymentRecord(gen=2))
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xff" * 50)
    found = _record(tmp_path).load()
    assert found.broken
    assert found.value is None
    assert {path.name for path in tmp_path.iterdir()} == {"record.a.broken", "record.b.broken"}
    assert not _record(tmp_path).load().broken


def test_one_damaged_copy_falls_back_to_the_other(tmp_path):
    book = _record(tmp_path)
    book.save(DeploymentRecord(gen=1))
    book.save(DeploymentRecord(gen=2))
    newest = tmp_path / "record.b"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = _record(tmp_path).load()
    assert found.value == DeploymentRecord(gen=1)
    assert not found.broken


def _store(folder, disk=DISK):
    return BlobStore(disk, folder, DigestVerifier())


def test_store_resumes_after_a_power_cut_at_every_operation(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    digest = writer.add()
    dry = FaultyDisk()
    _store(tmp_path / "dry", dry).fetch_bundle(LocalFetcher(writer.root), "m", digest)
    for crash_at in range(dry.operations):
        root = tmp_path / f"s{crash_at}"
        disk = FaultyDisk(crash_at=crash_at, seed=crash_at)
        with pytest.raises(PowerCut):
            _store(root, disk).fetch_bundle(LocalFetcher(writer.root), "m", digest)
        store = _store(root)
        store.fetch_bundle(LocalFetcher(writer.root), "m", digest)
        assert bundles.open_bundle(store.reader, digest).manifest.version == "1"
        assert store.fetch_bundle(None, "m", digest).transferred == 0
        assert not [p for p in (root / "blobs" / "sha256").iterdir() if p.suffix == ".partial"]


def test_store_transfers_only_what_is_missing_after_a_lost_connection(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    digest = writer.add()
    whole = LocalFetcher(writer.root)
    _store(tmp_path / "other").fetch_bundle(whole, "m", digest)
    manifest = len(whole.manifest("m", digest))
    whole.sent -= manifest
    store = _store(tmp_path / "s")
    sent = 0
    for _ in range(2):
        fetcher = LocalFetcher(writer.root, cut=manifest + 300)
        with pytest.raises(UnavailableError):
            store.fetch_bundle(fetcher, "m", digest)
        sent += fetcher.sent
    last = LocalFetcher(writer.root)
    assert store.fetch_bundle(last, "m", digest).transferred == last.sent
    assert sent + last.sent == whole.sent + 2 * manifest


def test_store_refuses_altered_bytes_and_keeps_nothing_of_them(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    digest = writer.add()
    store = _store(tmp_path / "s")
    with pytest.raises(BadInputError, match="digest"):
        store.fetch_bundle(LocalFetcher(writer.root, flip=True), "m", digest)
    assert list((tmp_path / "s" / "blobs" / "sha256").iterdir()) == []


def test_store_collects_only_what_nothing_refers_to(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    first, second = writer.add(seed=1, version="1"), writer.add(seed=2, version="2")
    store = _store(tmp_path / "s")
    for digest in (first, second):
        store.fetch_bundle(LocalFetcher(writer.root), "m", digest)
    assert store.collect([first])
    bundles.open_bundle(store.reader, first)
    with pytest.raises(BadInputError):
        bundles.open_bundle(store.reader, second)
    assert store.collect(["sha256:" + "0" * 64]) == []  # not here yet: keep everything
