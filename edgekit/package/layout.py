"""Writing side of OCI image layouts (image-spec v1.1, image-layout.md).

Order: blobs first, each durable; ``index.json`` last, by one rename. A failure in between removes
the blobs that this call added, so the layout is as it was. Equal content gives equal bytes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.oci import (
    INDEX_FILE,
    LAYOUT_FILE,
    MANIFEST_MEDIA_TYPE,
    REF_NAME,
    Descriptor,
    Index,
    LayoutReader,
    Manifest,
)
from edgekit.registry import files
from edgekit.registry.blobs import BlobFolder

# What a build leaves beside a layout, and alone where every target failed its gates.
_OF_BUILDS = {"build-record.json", "build-report.html"}
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass
class LayoutTransaction:
    """Additions to one layout; nothing is visible before the index is replaced."""

    root: Path
    _added: list[Path] = field(default_factory=list)
    _entries: dict[str, Descriptor | None] = field(default_factory=dict)
    _index: bytes | None = None

    def put(self, source: bytes | Path, media_type: str) -> Descriptor:
        """Store one blob."""
        blobs = BlobFolder(self.root)
        before = digest.of_bytes(source) if isinstance(source, bytes) else digest.of_file(source)[0]
        path = blobs.path(before)
        fresh = not path.exists()
        if fresh:
            self._added.append(path)
        if isinstance(source, bytes):
            blob, size = blobs.put_bytes(source), len(source)
        else:
            blob, size = blobs.put_file(source)
        return Descriptor(media_type=media_type, digest=blob, size=size)

    def tag(self, manifest: Manifest, reference: str) -> Descriptor:
        """Store ``manifest`` and let ``reference`` point at it; replaces what it pointed at."""
        stored = self.put(codec.encode(manifest), MANIFEST_MEDIA_TYPE)
        entry = Descriptor(
            media_type=MANIFEST_MEDIA_TYPE,
            digest=stored.digest,
            size=stored.size,
            annotations={REF_NAME: reference},
            artifact_type=manifest.artifact_type,
        )
        self.point(reference, entry)
        return entry

    def point(self, reference: str, entry: Descriptor) -> None:
        """Let ``reference`` point at a manifest or index that was `put`."""
        self._entries[reference] = entry

    def untag(self, reference: str) -> None:
        """Remove ``reference``; its blobs stay until they are collected."""
        self._entries[reference] = None

    def commit(self) -> None:
        """Replace the index."""
        index = self.root / INDEX_FILE
        known = LayoutReader(self.root).index().manifests if index.exists() else ()
        kept = [m for m in known if m.annotations.get(REF_NAME) not in self._entries]
        new = [entry for entry in self._entries.values() if entry is not None]
        entries = sorted((*kept, *new), key=lambda m: (m.annotations.get(REF_NAME, ""), m.digest))
        if not (self.root / LAYOUT_FILE).exists():
            files.write_atomic(self.root / LAYOUT_FILE, _LAYOUT)
        self._index = codec.encode(Index(manifests=tuple(entries)))
        files.write_atomic(index, self._index)

    def abandon(self, created: list[Path]) -> None:
        """Remove what this transaction added, unless its index is in place already.

        The last step of a commit makes the new index durable. When that step alone fails, the index
        is there and refers to the blobs: the new state is whole, and removing them would break it.
        """
        index = self.root / INDEX_FILE
        if self._index is not None and index.exists() and index.read_bytes() == self._index:
            return
        for path in self._added:
            path.unlink(missing_ok=True)
        _remove_empty(self.root, created)


@contextmanager
def transaction(root: Path) -> Iterator[LayoutTransaction]:
    """Change the layout at ``root`` (created when absent), all or nothing, one writer at a time.

    Raises:
        BadInputError: ``root`` holds something else.
        ResourceError: disk full.
    """
    with translate_os_errors("create", root):
        created = [path for path in (root, *root.parents) if not path.exists()]
        root.mkdir(parents=True, exist_ok=True)
        foreign = {entry.name for entry in root.iterdir()} - _OF_BUILDS
        if foreign and not (root / LAYOUT_FILE).exists() and foreign != {"blobs"}:
            raise BadInputError(
                f"{root}: is not empty and not an OCI layout", hint="choose another --out folder"
            )
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        change = LayoutTransaction(root)
        try:
            yield change
            change.commit()
        except BaseException:
            change.abandon(created)
            raise
    finally:
        os.close(handle)


def _remove_empty(root: Path, created: list[Path]) -> None:
    """Remove folders this transaction created, as far as they are empty."""
    if root in created:
        (root / LAYOUT_FILE).unlink(missing_ok=True)
    for folder in (root / "blobs" / "sha256", root / "blobs", *created):
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
