"""Finds and applies deltas: what the device holds, plus patches, instead of whole files.

Nothing here is trusted. Every result is read back from disk and compared with the digest that the
wanted bundle's own manifest gives, and a patch that yields more than announced is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from edgekit.contracts import codec, delta, oci, zstd
from edgekit.contracts import digest as digests
from edgekit.contracts.delta import Patch
from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit.contracts.oci import Descriptor, Index, Manifest
from edgekit_runtime.ports import Disk, Fetcher, Verifier


class Found(msgspec.Struct):
    """What there is for one download; ``reason`` says why there is nothing."""

    patches: dict[str, Patch] = msgspec.field(default_factory=dict)  # by the digest of the result
    transferred: int = 0
    reason: str = ""


def find(
    fetcher: Fetcher, verifier: Verifier, repository: str, wanted: str, held: Sequence[str]
) -> Found:
    """Patches that lead from one of the bundles ``held`` (best first) to ``wanted``.

    Raises:
        UnavailableError: the server is not reachable.
    """
    if not zstd.available():
        return Found(reason="there is no zstd on this device")
    source = _Source(fetcher, verifier, repository)
    try:
        found = source.patches(wanted, held)
    except BadInputError as exc:
        found = Found(reason=exc.message)
    found.transferred = source.transferred
    return found


class _Source(msgspec.Struct):
    """Reads documents about deltas and counts their bytes."""

    fetcher: Fetcher
    verifier: Verifier
    repository: str
    transferred: int = 0

    def patches(self, wanted: str, held: Sequence[str]) -> Found:
        """See `find`. Raises `BadInputError` for what cannot be used."""
        raw = self.fetcher.referrers(self.repository, wanted)
        if raw is None:
            return Found(reason="the server lists none")
        self.transferred += len(raw)
        what = "referrers"
        listed = codec.decode(Index, raw, what=what, bytes_max=OCI_MANIFEST_BYTES_MAX)
        entry, base = _choose(oci.check_index(listed, what), held)
        if entry is None:
            names = ", ".join(digests.short(digest) for digest in held)
            return Found(reason=f"there is none from {names}")
        raw = self.fetcher.manifest(self.repository, entry.digest)
        self.transferred += len(raw)
        self.verifier.manifest(entry.digest, raw)
        manifest = oci.check_manifest(codec.decode(Manifest, raw, what="delta"), "delta")
        return Found(delta.read(manifest, base, wanted))


def _choose(index: Index, held: Sequence[str]) -> tuple[Descriptor | None, str]:
    for base in held:
        for entry in index.manifests:
            is_delta = entry.artifact_type == delta.ARTIFACT_TYPE
            if is_delta and entry.annotations.get(delta.BASE) == base:
                return entry, base
    return None, ""


def apply(disk: Disk, folder: Path, patch: Patch, size: int, partial: Path) -> None:
    """Write what ``patch`` yields to ``partial``, durable; begins anew if it is there already.

    Raises:
        BadInputError: the patch is damaged or does not fit; ``partial`` is removed.
        ResourceError: no space; ``partial`` is removed.
    """
    old, path = folder / digests.hex_of(patch.base), folder / digests.hex_of(patch.blob.digest)
    frames = delta.spans(disk.size(old) or 0, size, patch.block, patch.reach)
    disk.unlink(partial)
    disk.append(partial, b"", sync=True)
    try:
        for chunk in zstd.apply(
            lambda offset, length: disk.read_at(old, offset, length),
            frames,
            _chunks(disk, path, patch.blob.size),
        ):
            disk.append(partial, chunk, sync=False)
    except (BadInputError, ResourceError):
        disk.unlink(partial)
        raise
    disk.sync(partial)


def _chunks(disk: Disk, path: Path, size: int) -> Iterator[bytes]:
    for offset in range(0, size, zstd.CHUNK_BYTES):
        yield disk.read_at(path, offset, min(zstd.CHUNK_BYTES, size - offset))
