"""Blob store: content-addressed, resumable, verified from disk, collected by reachability.

A download lands in ``<hex>.partial``, is fsynced, *read again* and hashed, then renamed. A bundle's
manifest is stored last: where it lies, everything it names lies too (or has been damaged since,
which `edgekit_runtime.bundles` finds by hashing again).

A file may come as a patch against one the device holds (`edgekit_runtime.deltas`). The patch is
downloaded like any blob, what it yields lands in the same ``<hex>.partial`` and is verified in the
same way: a whole download may go on where a patch left off, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edgekit.contracts import codec, oci
from edgekit.contracts import digest as digests
from edgekit.contracts.delta import Patch
from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError, UnavailableError
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit.contracts.messages import DeltaFallback
from edgekit.contracts.oci import Descriptor, LayoutReader, Manifest
from edgekit_runtime import deltas
from edgekit_runtime.errors import DeltaAwaitedError
from edgekit_runtime.ports import Disk, Fetcher, Verifier

FREE_BYTES_MIN = 16 * 1024 * 1024  # always left for spool and record; they matter more
_PARTIAL = ".partial"


class Fetched(msgspec.Struct, frozen=True):
    """A bundle that is here now. ``note`` says why files came whole in spite of what is held."""

    transferred: int  # bytes, deltas and manifests included
    note: str = ""


class BlobStore:
    """Blobs under ``root/blobs/sha256``."""

    def __init__(self, disk: Disk, root: Path, verifier: Verifier) -> None:
        self._disk = disk
        self._verifier = verifier
        self.reader = LayoutReader(root)
        self._folder = root / "blobs" / "sha256"
        disk.make_dir(self._folder)

    def fetch_bundle(
        self,
        fetcher: Fetcher | None,
        repository: str,
        digest: str,
        *,
        held: Sequence[str] = (),
        fallback: DeltaFallback = DeltaFallback.FULL,
    ) -> Fetched:
        """Make every blob of a bundle present.

        Args:
            fetcher: where it comes from.
            repository: of the bundle.
            digest: of its manifest.
            held: bundles that are here already, best first: a delta may lead from one of them.
            fallback: what to do when none does. Without ``held`` whole files are fetched.

        Raises:
            UnavailableError: the server is not reachable, or ``fetcher`` is None and one is needed.
            DeltaAwaitedError: there is no usable delta, and ``fallback`` says to wait.
            BadInputError: what was received is not what was asked for, or there is no usable delta
                and ``fallback`` says to fail.
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
        blobs = (manifest.config, *manifest.layers)
        found = deltas.Found()
        if held and fetcher and any(self._disk.size(self._path(b.digest)) != b.size for b in blobs):
            found = deltas.find(fetcher, self._verifier, repository, digest, held)
            transferred += found.transferred
        problem = _unless_full(found.reason, fallback)
        for blob in blobs:
            patch = found.patches.get(blob.digest)
            if patch is not None and self._disk.size(self._path(blob.digest)) != blob.size:
                received, why = self._patch_blob(fetcher, repository, blob, patch)
                transferred += received
                problem = problem or _unless_full(why, fallback)
            transferred += self._fetch_blob(fetcher, repository, blob)
        if fresh:
            self._disk.replace(path, raw)
        return Fetched(transferred, f"fetched whole files: {problem}" if problem else "")

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

    def _patch_blob(
        self, fetcher: Fetcher | None, repository: str, blob: Descriptor, patch: Patch
    ) -> tuple[int, str]:
        """Make ``blob`` from what is held; returns the bytes transferred and why it is not there.

        Raises:
            UnavailableError, ResourceError: as `fetch_bundle`.
        """
        path, base = self._path(blob.digest), self._path(patch.base)
        partial = path.with_name(path.name + _PARTIAL)
        if blob.size - (self._disk.size(partial) or 0) <= patch.blob.size:
            return 0, ""  # the rest of a whole download is shorter
        short = digests.short(patch.base)
        if self._disk.size(base) is None or digests.of_file(base)[0] != patch.base:
            return 0, f"blob {short}, which a patch refers to, is missing or damaged here"
        self._check_space(blob.size + patch.blob.size)
        transferred, problem = 0, ""
        try:
            transferred = self._fetch_blob(fetcher, repository, patch.blob)
            deltas.apply(self._disk, self._folder, patch, blob.size, partial)
        except BadInputError as exc:
            problem = exc.message
        else:
            if digests.of_file(partial) == (blob.digest, blob.size):
                self._disk.rename(partial, path)
            else:
                self._disk.unlink(partial)
                problem = f"patch {digests.short(patch.blob.digest)} yields another file"
        self._disk.unlink(self._path(patch.blob.digest))  # of no more use, applied or not
        return transferred, problem

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


def _unless_full(reason: str, fallback: DeltaFallback) -> str:
    """``reason`` for a whole download, when there is one and the policy allows it.

    Raises:
        DeltaAwaitedError, BadInputError: it does not.
    """
    if reason and fallback is DeltaFallback.WAIT:
        raise DeltaAwaitedError(f"no delta: {reason}", hint="publish one, or allow whole files")
    if reason and fallback is DeltaFallback.FAIL:
        raise BadInputError(f"no delta: {reason}", hint="policy.delta_fallback refuses whole files")
    return reason


def _need(fetcher: Fetcher | None, digest: str) -> Fetcher:
    if fetcher is None:
        raise UnavailableError(
            f"{digests.short(digest)} is not held here and no artifacts_url is configured",
            hint="the manager sets config.artifacts_url in the desired state",
        )
    return fetcher
