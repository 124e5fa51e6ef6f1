"""Blob store: content-addressed, resumable, verified from disk, collected by reachability.

A download lands in ``<hex>.partial``, is fsynced, *read again* and hashed, then renamed. A bundle's
manifest is stored last: where it lies, everything it names lies too (or has been damaged since,
which `edgekit_runtime.bundles` finds by hashing again).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgekit.contracts import codec, oci
from edgekit.contracts import digest as digests
from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError, UnavailableError
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit.contracts.oci import Descriptor, LayoutReader, Manifest
from edgekit_runtime.ports import Disk, Fetcher, Verifier

FREE_BYTES_MIN = 16 * 1024 * 1024  # always left for spool and record; they matter more
_PARTIAL = ".partial"


class BlobStore:
    """Blobs under ``root/blobs/sha256``."""

    def __init__(self, disk: Disk, root: Path, verifier: Verifier) -> None:
        self._disk = disk
        self._verifier = verifier
        self.reader = LayoutReader(root)
        self._folder = root / "blobs" / "sha256"
        disk.make_dir(self._folder)

    def fetch_bundle(self, fetcher: Fetcher | None, repository: str, digest: str) -> int:
        """Make every blob of a bundle present; returns the bytes that were transferred.

        Raises:
            UnavailableError: the server is not reachable, or ``fetcher`` is None and one is needed.
            BadInputError: what was received is not what was asked for.
            ResourceError: no space.
        """
        path = self._path(digest)
        raw = self._disk.read(path, bytes_max=OCI_MANIFEST_BYTES_MAX)
        transferred = 0
        fresh = raw is None or digests.of_bytes(raw) != digest
        if raw is None or fresh:
            raw = _need(fetcher, digest).manifest(repository, digest)
            transferred += len(raw)
        self._verifier.manifest(digest, raw)
        what = f"manifest {digests.short(digest)}"
        manifest = oci.check_manifest(codec.decode(Manifest, raw, what=what), what)
        for blob in (manifest.config, *manifest.layers):
            transferred += self._fetch_blob(fetcher, repository, blob)
        if fresh:
            self._disk.replace(path, raw)
        return transferred

    def collect(self, keep: Iterable[str]) -> list[str]:
        """Remove every blob that no manifest in ``keep`` names; returns the removed file names."""
        wanted: set[str] = set()
        for digest in keep:
            wanted.add(digests.hex_of(digest))
            try:
                manifest = self.reader.manifest(digest)
            except EdgekitError:
                # Cannot tell what it names (still being fetched, or damaged): keep everything.
                return []
            blobs = (manifest.config, *manifest.layers)
            wanted |= {digests.hex_of(blob.digest) for blob in blobs}
        gone = [
            name
            for name in self._disk.names(self._folder)
            if name.removesuffix(_PARTIAL) not in wanted
        ]
        for name in gone:
            self._disk.unlink(self._folder / name)
        return gone

    def discard_damaged(self, digest: str) -> None:
        """Remove blobs of a bundle whose content no longer matches, so that they can be fetched.

        Raises:
            BadInputError: a blob cannot be removed.
        """
        try:
            manifest = self.reader.manifest(digest)
        except EdgekitError:
            self._disk.unlink(self._path(digest))
            return
        for blob in (manifest.config, *manifest.layers):
            if not self._intact(blob):
                self._disk.unlink(self._path(blob.digest))

    def _intact(self, blob: Descriptor) -> bool:
        try:
            self.reader.verify_blob(blob)
        except EdgekitError:
            return False
        return True

    def _path(self, digest: str) -> Path:
        return self._folder / digests.hex_of(digest)

    def _fetch_blob(self, fetcher: Fetcher | None, repository: str, blob: Descriptor) -> int:
        path = self._path(blob.digest)
        if self._disk.size(path) == blob.size:
            return 0
        partial = path.with_name(path.name + _PARTIAL)
        resumed = self._disk.size(partial) or 0
        if resumed > blob.size:
            self._disk.unlink(partial)
            resumed = 0
        self._check_space(blob.size - resumed)
        transferred = self._receive(_need(fetcher, blob.digest), repository, blob, partial)
        found, size = digests.of_file(partial)
        if (found, size) != (blob.digest, blob.size):
            self._disk.unlink(partial)
            if resumed:  # the old half may be the damaged one: once more from the start
                return transferred + self._fetch_blob(fetcher, repository, blob)
            raise BadInputError(
                f"blob {digests.short(blob.digest)}: {size} bytes received that do not match "
                "its digest",
                hint="the artifact server's copy is damaged: publish the release again",
            )
        self._disk.rename(partial, path)
        return transferred

    def _receive(self, fetcher: Fetcher, repository: str, blob: Descriptor, partial: Path) -> int:
        have = start = self._disk.size(partial) or 0
        if have == 0:
            self._disk.append(partial, b"", sync=True)
        for chunk in fetcher.blob(repository, blob.digest, have) if have < blob.size else ():
            have += len(chunk)
            if have > blob.size:
                self._disk.unlink(partial)
                raise BadInputError(
                    f"blob {digests.short(blob.digest)}: the server sends more than the "
                    f"{blob.size} bytes announced"
                )
            self._disk.append(partial, chunk, sync=False)
        if have < blob.size:
            raise UnavailableError(
                f"blob {digests.short(blob.digest)}: connection ended at {have} of {blob.size}"
            )
        self._disk.sync(partial)
        return have - start

    def _check_space(self, size: int) -> None:
        free = self._disk.free_bytes(self._folder)
        if free < size + FREE_BYTES_MIN:
            raise ResourceError(
                f"{self._folder}: {free} bytes free, {size} needed and {FREE_BYTES_MIN} kept back",
                hint="free space on the device",
            )


def _need(fetcher: Fetcher | None, digest: str) -> Fetcher:
    if fetcher is None:
        raise UnavailableError(
            f"{digests.short(digest)} is not held here and no artifacts_url is configured",
            hint="the manager sets config.artifacts_url in the desired state",
        )
    return fetcher
