"""What changes between two bundles, and what of it has to travel. Pure."""

from __future__ import annotations

from enum import Enum

import msgspec

from edgekit.contracts.bundle import BundleFile, BundleManifest
from edgekit.contracts.oci import Descriptor


class Change(str, Enum):
    """What became of one file."""

    SHARED = "shared"
    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    """One path. Sizes in bytes; None where the file is absent."""

    path: str
    role: str
    change: Change
    old_bytes: int | None
    new_bytes: int | None


class BundleDiff(msgspec.Struct, frozen=True, kw_only=True):
    """Files by path, and what a device that holds the old bundle must fetch for the new one."""

    files: tuple[FileChange, ...]
    shared_bytes: int
    transfer_bytes: int  # blobs the old bundle does not hold, manifest and config included
    total_bytes: int


def _change(old: BundleFile | None, new: BundleFile | None) -> Change:
    if old is None:
        return Change.ADDED
    if new is None:
        return Change.REMOVED
    return Change.SHARED if old.sha256 == new.sha256 else Change.CHANGED


def compare(
    old: BundleManifest,
    new: BundleManifest,
    old_blobs: tuple[Descriptor, ...],
    new_blobs: tuple[Descriptor, ...],
) -> BundleDiff:
    """Compare two bundles; ``…_blobs`` are everything that is transferred for each."""
    before = {entry.path: entry for entry in old.files}
    after = {entry.path: entry for entry in new.files}
    changes = []
    for path in sorted({*before, *after}):
        was, now = before.get(path), after.get(path)
        known = now or was
        assert known is not None
        changes.append(
            FileChange(
                path=path,
                role=known.role,
                change=_change(was, now),
                old_bytes=None if was is None else was.size,
                new_bytes=None if now is None else now.size,
            )
        )
    held = {blob.digest for blob in old_blobs}
    wanted = {blob.digest: blob.size for blob in new_blobs}  # equal files travel once
    total = sum(wanted.values())
    transfer = sum(size for name, size in wanted.items() if name not in held)
    return BundleDiff(
        files=tuple(changes),
        shared_bytes=total - transfer,
        transfer_bytes=transfer,
        total_bytes=total,
    )
