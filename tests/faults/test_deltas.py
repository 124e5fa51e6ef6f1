"""Deltas on the device: power cuts, damage, policies; what they yield is always the whole file."""

from __future__ import annotations

from contextlib import nullcontext

import msgspec
import pytest
from agentkit import deltas
from agentkit.disks import FaultyDisk, PowerCut
from agentkit.fetchers import LocalFetcher

from edgekit.contracts import codec, delta, oci, zstd
from edgekit.contracts import digest as digests
from edgekit.contracts.errors import BadInputError, ResourceError, UnavailableError
from edgekit.contracts.messages import DeltaFallback
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.downloads import Meter, Metered
from edgekit_runtime.errors import DeltaAwaitedError
from edgekit_runtime.store import BlobStore
from edgekit_runtime.verifier import DigestVerifier


def store(folder, disk=None):
    return BlobStore(disk or PosixDisk(), folder, DigestVerifier())


def holding(folder, layout, digest):
    store(folder).fetch_bundle(LocalFetcher(layout), "m", digest)
    return folder


def update(device, layout, old, new, disk=None, **options):
    """Fetch ``new`` on a device that holds ``old``; what was sent, and what it says."""
    fetcher = LocalFetcher(layout, **options)
    found = store(device, disk).fetch_bundle(fetcher, "m", new, held=[old])
    assert found.transferred == fetcher.sent
    check(device, new)
    return found


def check(device, digest):
    blobs = store(device).reader
    manifest = blobs.manifest(digest)
    for blob in (manifest.config, *manifest.layers):
        blobs.verify_blob(blob)


def names(device):
    return {path.name for path in (device / "blobs" / "sha256").iterdir()}


@pytest.fixture
def case(tmp_path):
    writer, old, new = deltas.versions(tmp_path / "layout")
    facts = deltas.add(writer, old, new)
    return writer, old, new, facts


def test_a_delta_costs_a_fraction_and_leaves_nothing_behind(tmp_path, case):
    writer, old, new, facts = case
    whole = holding(tmp_path / "whole", writer.root, new)
    device = holding(tmp_path / "device", writer.root, old)
    found = update(device, writer.root, old, new)
    assert found.note == ""
    assert found.transferred < 0.1 * deltas.SIZE
    listed = found.transferred - facts.transfer_bytes  # the referrers list is not part of it
    assert 0 < listed < 1000
    assert names(device) == names(whole) | names(holding(tmp_path / "old", writer.root, old))
    assert update(device, writer.root, old, new).transferred == 0


def test_power_cuts_at_every_operation_of_an_update(tmp_path, case):
    writer, old, new, _ = case
    dry = FaultyDisk()
    device = holding(tmp_path / "dry", writer.root, old)
    update(device, writer.root, old, new, dry)
    for crash_at in range(1, dry.operations):  # the first makes the folder
        device = holding(tmp_path / f"s{crash_at}", writer.root, old)
        with pytest.raises(PowerCut):
            update(device, writer.root, old, new, FaultyDisk(crash_at=crash_at, seed=crash_at))
        check(device, old)
        update(device, writer.root, old, new)
        assert not [name for name in names(device) if name.endswith(".partial")]
        store(device).collect([old, new])
        assert store(device).collect([old, new]) == []


def test_a_full_disk_is_said_and_mended(tmp_path, case):
    writer, old, new, _ = case
    dry = FaultyDisk()
    update(holding(tmp_path / "dry", writer.root, old), writer.root, old, new, dry)
    for full_from in range(1, dry.operations - 1):
        device = holding(tmp_path / f"s{full_from}", writer.root, old)
        try:
            update(device, writer.root, old, new, FaultyDisk(full_from=full_from))
        except ResourceError:
            check(device, old)
        update(device, writer.root, old, new)


def test_a_lost_connection_goes_on_with_the_patch(tmp_path, case):
    writer, old, new, facts = case
    device = holding(tmp_path / "device", writer.root, old)
    with pytest.raises(UnavailableError):
        update(device, writer.root, old, new, cut=facts.transfer_bytes - 500)
    partial = [name for name in names(device) if name.endswith(".partial")]
    assert len(partial) == 1  # of the patch
    update(device, writer.root, old, new)


def test_what_broke_off_is_counted_too(tmp_path, case):
    writer, old, new, facts = case
    device = holding(tmp_path / "device", writer.root, old)
    meter, sent = Meter(), 0
    for cut in (300, facts.transfer_bytes - 500, None):
        fetcher = LocalFetcher(writer.root, cut=cut)
        with nullcontext() if cut is None else pytest.raises(UnavailableError):
            store(device).fetch_bundle(Metered(fetcher, meter), "m", new, held=[old])
        sent += fetcher.sent
    assert meter.count == sent
    check(device, new)


def test_the_rest_of_a_whole_download_is_taken_when_it_is_shorter(tmp_path, case):
    writer, old, new, _ = case
    device = holding(tmp_path / "device", writer.root, old)
    model = deltas.weights(1, 2000)
    partial = digests.hex_of(digests.of_bytes(model)) + ".partial"
    (device / "blobs" / "sha256" / partial).write_bytes(model[:-10])
    found = update(device, writer.root, old, new)
    assert found.transferred < 4000


def rewritten(writer, facts, change):
    """Replace the delta's manifest with a changed one; its blobs stay."""
    layout = oci.LayoutReader(writer.root)
    manifest = layout.manifest(facts.digest)
    layout.blob_path(facts.digest).unlink()
    raw = codec.encode(change(layout, manifest))
    writer.blob(raw)


def with_patch(writer, facts, make):
    """Let the delta carry another patch."""

    def change(layout, manifest):
        layer = manifest.layers[0]
        blob, size = writer.blob(make(layout.blob_path(layer.digest).read_bytes()))
        changed = msgspec.structs.replace(layer, digest=blob, size=size)
        return msgspec.structs.replace(manifest, layers=(changed,))

    rewritten(writer, facts, change)


def annotated(**changes):
    def change(_layout, manifest):
        layer = manifest.layers[0]
        told = {**layer.annotations, **{f"edgekit.delta.{k}": v for k, v in changes.items()}}
        changed = msgspec.structs.replace(layer, annotations=told)
        return msgspec.structs.replace(manifest, layers=(changed,))

    return change


def bomb(_patch):
    return zstd.compress(bytes(deltas.SIZE * 1000), b"")


def wrong(_patch):
    return zstd.compress(deltas.weights(1, 3000), deltas.weights(1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda w, f: with_patch(w, f, bomb), "more than the 60000 bytes"),
        (lambda w, f: with_patch(w, f, wrong), "yields another file"),
        (lambda w, f: with_patch(w, f, lambda p: p[:-20]), "ends before"),
        (lambda w, f: with_patch(w, f, lambda p: p + b"more"), "after its last frame"),
        (lambda w, f: with_patch(w, f, lambda _: b"no zstd at all, but long"), "patch: "),
        (lambda w, f: rewritten(w, f, annotated(block="999999999999")), "out of bounds"),
        (lambda w, f: rewritten(w, f, annotated(block="many")), "invalid literal"),
        (lambda w, f: rewritten(w, f, annotated(**{"from": "../../etc"})), "not a sha256 digest"),
        (lambda w, f: rewritten(w, f, annotated(**{"from": "sha256:" + "0" * 64})), "missing"),
    ],
)
def test_a_delta_that_cannot_be_used_costs_a_download_and_says_why(tmp_path, case, damage, reason):
    writer, old, new, facts = case
    damage(writer, facts)
    device = holding(tmp_path / "device", writer.root, old)
    found = update(device, writer.root, old, new)
    assert reason in found.note
    assert not [name for name in names(device) if name.endswith(".partial")]
    other = holding(tmp_path / "other", writer.root, old)
    fetcher = LocalFetcher(writer.root)
    with pytest.raises(DeltaAwaitedError, match="no delta"):
        store(other).fetch_bundle(fetcher, "m", new, held=[old], fallback=DeltaFallback.WAIT)
    with pytest.raises(BadInputError, match="no delta"):
        store(other).fetch_bundle(fetcher, "m", new, held=[old], fallback=DeltaFallback.FAIL)
    check(other, old)


def test_a_damaged_base_is_not_patched(tmp_path, case):
    writer, old, new, _ = case
    device = holding(tmp_path / "device", writer.root, old)
    base = device / "blobs" / "sha256" / digests.hex_of(digests.of_bytes(deltas.weights(1)))
    base.write_bytes(b"?" + base.read_bytes()[1:])
    found = update(device, writer.root, old, new)
    assert "missing or damaged here" in found.note


@pytest.mark.parametrize("fallback", list(DeltaFallback))
def test_without_a_delta_the_policy_decides(tmp_path, fallback):
    writer, old, new = deltas.versions(tmp_path / "layout")
    device = holding(tmp_path / "device", writer.root, old)
    fetcher = LocalFetcher(writer.root)

    def fetch(held):
        return store(device).fetch_bundle(fetcher, "m", new, held=held, fallback=fallback)

    if fallback is DeltaFallback.FULL:
        assert "there is none from" in fetch([old]).note
    else:
        kind = DeltaAwaitedError if fallback is DeltaFallback.WAIT else BadInputError
        with pytest.raises(kind):
            fetch([old])
    assert fetch([]).note == ""  # nothing to patch: whole files, whatever the policy
    check(device, new)


def test_a_device_without_zstd_takes_whole_files(tmp_path, case, monkeypatch):
    writer, old, new, _ = case
    device = holding(tmp_path / "device", writer.root, old)
    monkeypatch.setattr(zstd, "_library", lambda: None)
    assert "no zstd" in update(device, writer.root, old, new).note


def test_a_retrained_model_travels_whole_and_satisfies_every_policy(tmp_path):
    writer, old, new = deltas.versions(tmp_path / "layout", changed=deltas.SIZE)
    facts = deltas.add(writer, old, new)
    assert facts.files[0].patch_bytes is None
    assert oci.LayoutReader(writer.root).manifest(facts.digest).layers == (oci.EMPTY,)
    device = holding(tmp_path / "device", writer.root, old)
    fetcher = LocalFetcher(writer.root)
    found = store(device).fetch_bundle(fetcher, "m", new, held=[old], fallback=DeltaFallback.FAIL)
    assert found.note == ""
    check(device, new)


def test_frames_of_a_long_file_know_their_surroundings_only():
    found = delta.spans(100, 70, 30, 10)
    assert [(s.size, s.start, s.end) for s in found] == [(30, 0, 40), (30, 20, 70), (10, 50, 80)]
    assert delta.spans(5, 70, 30, 10)[2] == delta.Span(10, 5, 5)
    assert delta.spans(5, 0, 30, 10) == []
