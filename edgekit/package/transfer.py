"""Push from and pull into OCI layouts, blob by blob; what the other side holds is not sent again.

Blobs go before the manifests that name them, so an interrupted push leaves nothing visible. A pull
writes to the layout in one transaction, so an interrupted pull leaves it as it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec

from edgekit.contracts import digest
from edgekit.contracts.errors import BadInputError, UnavailableError, translate_os_errors
from edgekit.contracts.limits import MODEL_BYTES_MAX, OCI_MANIFEST_BYTES_MAX
from edgekit.contracts.oci import (
    INDEX_MEDIA_TYPES,
    MANIFEST_MEDIA_TYPES,
    REF_NAME,
    Descriptor,
    Index,
    LayoutReader,
    Manifest,
    decode_any,
)
from edgekit.package.layout import LayoutTransaction, transaction
from edgekit.package.registry import Registry, refusal

CHUNK_BYTES = 16 * 1024 * 1024  # larger blobs go in parts: what a broken link loses is one part
TRIES_MAX = 4  # of one blob, each going on where the last one ended
BASE_LAYER_BYTES_MAX = 8 * 1024**3  # JetPack with CUDA in one layer
DEPTH_MAX = 3  # an index of indexes; deeper ones are refused
_ACCEPT = ", ".join((*MANIFEST_MEDIA_TYPES, *INDEX_MEDIA_TYPES))


@dataclass(frozen=True)
class Moved:
    """One blob or manifest was dealt with."""

    digest: str
    size: int
    transferred: bool  # False: the other side had it


OnMoved = Callable[[Moved], None]


def push(
    registry: Registry, reader: LayoutReader, manifest_digest: str, names: list[str], said: OnMoved
) -> None:
    """Push a manifest or index with all it refers to, under each of ``names`` (tags or digests).

    Raises:
        BadInputError: a blob is missing or altered here; the registry refused.
        UnavailableError: the registry is not there.
    """
    top = _push_below(registry, reader, manifest_digest, said, depth=0)
    for name in names:
        _put_manifest(registry, top, name)
    said(Moved(digest.of_bytes(top.raw), len(top.raw), transferred=True))


class _Raw(msgspec.Struct, frozen=True):
    """A manifest as it is stored."""

    raw: bytes
    media_type: str


def _push_below(
    registry: Registry, reader: LayoutReader, manifest_digest: str, said: OnMoved, *, depth: int
) -> _Raw:
    found = reader.manifest_or_index(manifest_digest)
    if isinstance(found, Index):
        if depth >= DEPTH_MAX:
            raise BadInputError(f"index {digest.short(manifest_digest)}: nested too deeply")
        for entry in found.manifests:
            child = _push_below(registry, reader, entry.digest, said, depth=depth + 1)
            _put_manifest(registry, child, entry.digest)
            said(Moved(entry.digest, entry.size, transferred=True))
    else:
        for blob in {b.digest: b for b in (found.config, *found.layers)}.values():
            said(Moved(blob.digest, blob.size, transferred=_push_blob(registry, reader, blob)))
    raw = reader.read_blob(manifest_digest, bytes_max=OCI_MANIFEST_BYTES_MAX)
    return _Raw(raw, found.media_type)


def _put_manifest(registry: Registry, manifest: _Raw, name: str) -> None:
    headers = {"Content-Type": manifest.media_type}
    registry.send("PUT", registry.url(f"manifests/{name}"), content=manifest.raw, headers=headers)


def _push_blob(registry: Registry, reader: LayoutReader, blob: Descriptor) -> bool:
    """Push ``blob`` unless it is there; whether it was sent."""
    path = reader.verify_blob(blob)
    held = registry.send("HEAD", registry.url(f"blobs/{blob.digest}"), allow=(404,))
    if held.status_code != 404:
        return False
    started = registry.send("POST", registry.url("blobs/uploads/"), headers={"Content-Length": "0"})
    where = registry.location(started)
    if blob.size > CHUNK_BYTES:
        where = _push_chunks(registry, path, blob.size, where)
        body: dict[str, Any] = {"headers": {"Content-Length": "0"}}
    else:
        part = partial(_read, path, 0, blob.size)
        size = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
        body = {"content": part, "headers": size}
    finish = httpx.URL(where).copy_merge_params({"digest": blob.digest})
    with translate_os_errors("read", path):
        registry.send("PUT", str(finish), **body)
    return True


def _push_chunks(registry: Registry, path: Path, size: int, where: str) -> str:
    """PATCH the blob in parts; a part that failed is sent again from where the registry stands."""
    at, failures = 0, 0
    while at < size:
        end = min(at + CHUNK_BYTES, size)
        headers = {
            "Content-Length": str(end - at),
            "Content-Range": f"{at}-{end - 1}",
            "Content-Type": "application/octet-stream",
        }
        try:
            with translate_os_errors("read", path):
                content = partial(_read, path, at, end)
                done = registry.send("PATCH", where, content=content, headers=headers)
            where, at = registry.location(done), end
        except UnavailableError:
            failures += 1
            if failures >= TRIES_MAX:
                raise
            at = _stands_at(registry, where)
    return where


def _stands_at(registry: Registry, where: str) -> int:
    """How many bytes of an upload the registry holds."""
    last = registry.send("GET", where).headers.get("range", "0-0").rpartition("-")[2]
    # ``0-0`` is what an empty session says; a session of exactly one byte does not occur here.
    return int(last) + 1 if last.isdigit() and last != "0" else 0


def _read(path: Path, first: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        left = end - first
        while left > 0 and (chunk := file.read(min(digest.CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def digest_of(registry: Registry) -> str:
    """What the registry's reference names now. Raises like `pull`."""
    url = registry.url(f"manifests/{registry.reference.name}")
    answer = registry.send("GET", url, headers={"Accept": _ACCEPT})
    return digest.of_bytes(answer.content)


def of_platform(index: Index, arch: str, what: str) -> Descriptor:
    """The entry of ``index`` for ``linux/arch``.

    Raises:
        BadInputError: there is none; lists what there is.
    """
    platforms = {f"{p.os}/{p.architecture}": e for e in index.manifests if (p := e.platform)}
    found = platforms.get(f"linux/{arch}")
    if found is None:
        raise BadInputError(
            f"{what}: holds no image for linux/{arch}",
            hint="it has " + (", ".join(sorted(platforms)) or "none that names its platform"),
        )
    return found


def pull(
    registry: Registry, layout: Path, tag: str, said: OnMoved, *, arch: str | None = None
) -> Descriptor:
    """Pull what the registry's reference names into ``layout`` and tag it ``tag`` there.

    With ``arch``, of an index only the image for that architecture comes, beside the index itself.

    Raises:
        BadInputError: no such thing; what came is not what its digest says.
        UnavailableError: the registry is not there, or broke off too often.
        ResourceError: no space.
    """
    with translate_os_errors("create", layout):
        layout.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=layout.parent, prefix=f".{layout.name[:40]}.")
    with folder as work, transaction(layout) as change:
        puller = _Puller(registry, LayoutReader(layout), change, Path(work), said, arch)
        stored, found = puller.manifest(registry.reference.name, depth=0)
        kind = found.artifact_type if isinstance(found, Manifest) else None
        entry = msgspec.structs.replace(stored, annotations={REF_NAME: tag}, artifact_type=kind)
        change.point(tag, entry)
    return entry


@dataclass(frozen=True)
class _Puller:
    registry: Registry
    held: LayoutReader
    change: LayoutTransaction
    work: Path
    said: OnMoved
    arch: str | None = None

    def manifest(self, name: str, *, depth: int) -> tuple[Descriptor, Manifest | Index]:
        url = self.registry.url(f"manifests/{name}")
        answer = self.registry.send("GET", url, headers={"Accept": _ACCEPT})
        raw, what = answer.content, f"manifest {self.registry.reference.repository}:{name}"
        if name.startswith("sha256:") and digest.of_bytes(raw) != name:
            raise BadInputError(f"{what}: the registry sent other bytes than its digest says")
        found = decode_any(raw, what)
        if isinstance(found, Index):
            if depth >= DEPTH_MAX:
                raise BadInputError(f"{what}: indexes are nested too deeply")
            wanted = (of_platform(found, self.arch, what),) if self.arch else found.manifests
            for entry in wanted:
                self.manifest(entry.digest, depth=depth + 1)
        else:
            for blob in {b.digest: b for b in (found.config, *found.layers)}.values():
                self._blob(blob)
        stored = self.change.put(raw, found.media_type)
        self.said(Moved(stored.digest, stored.size, transferred=True))
        return stored, found

    def _blob(self, blob: Descriptor) -> None:
        if blob.size > (BASE_LAYER_BYTES_MAX if self.arch else MODEL_BYTES_MAX):
            raise BadInputError(f"blob {blob.digest}: {blob.size} bytes are over the limit")
        path = self.held.blob_path(blob.digest)
        if path.is_file() and digest.of_file(path) == (blob.digest, blob.size):
            self.said(Moved(blob.digest, blob.size, transferred=False))
            return
        path.unlink(missing_ok=True)  # damaged: fetched again
        # Names a missing blob plainly, and renews a login that ran out during the one before.
        self.registry.send("HEAD", self.registry.url(f"blobs/{blob.digest}"))
        target = self.work / digest.hex_of(blob.digest)
        for attempt in range(1, TRIES_MAX + 1):
            try:
                self._fetch(blob, target)
                break
            except UnavailableError:
                if attempt == TRIES_MAX:
                    raise
        if digest.of_file(target) != (blob.digest, blob.size):
            raise BadInputError(
                f"blob {blob.digest}: what {self.registry.reference.host} sent is altered or cut",
                hint="pull again; if it stays so, the registry's copy is damaged",
            )
        self.change.put(target, blob.media_type)
        target.unlink()
        self.said(Moved(blob.digest, blob.size, transferred=True))

    def _fetch(self, blob: Descriptor, target: Path) -> None:
        """Append what is missing of ``blob`` to ``target``."""
        url = self.registry.url(f"blobs/{blob.digest}")
        have = target.stat().st_size if target.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with (
            self.registry.reachable(),
            self.registry.stream(url, headers) as answer,
            translate_os_errors("write", target),
        ):
            if answer.status_code == 416:
                raise BadInputError(
                    f"blob {blob.digest}: the registry holds {have} bytes of {blob.size}: cut short"
                )
            if answer.status_code >= 400:
                answer.read()
                raise refusal(answer, f"GET {url}")
            with target.open("ab" if answer.status_code == 206 else "wb") as file:
                for chunk in answer.iter_bytes(digest.CHUNK_BYTES):
                    file.write(chunk)
                    if file.tell() > blob.size:
                        raise BadInputError(f"blob {blob.digest}: more than {blob.size} bytes came")
            if target.stat().st_size < blob.size:
                raise UnavailableError(f"blob {blob.digest}: broke off before its end")
