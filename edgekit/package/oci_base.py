"""Bases that are images: from an OCI layout (folder or tar) or a registry, pinned by digest.

Their layers are taken over byte for byte, so that a device which holds the base fetches nothing of
it. Every layer is unpacked once, in memory and bounded, to see that it is what the configuration
promises and holds nothing that `edgekit.package.rootfs` refuses; nothing of it is written or run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from edgekit.build.cache import Cache
from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, ResourceError, UsageError, translate_os_errors
from edgekit.contracts.oci import Descriptor, Index, LayoutReader, Manifest
from edgekit.package import reader, reference, registry, rootfs, tar, transfer
from edgekit.package.base import Base, Layer
from edgekit.package.tar import Entry, LayerFacts

GZIP_TYPES = (tar.LAYER_MEDIA_TYPE, "application/vnd.docker.image.rootfs.diff.tar.gzip")
PLAIN_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
)
CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
UNPACKED_BYTES_MAX = 16 * 1024**3  # of all layers, as tars; a JetPack with CUDA is about 10 GB
LAYERS_MAX = 120  # engines stop at 127, and ours come on top
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"  # image-spec layer.md
_BLOB = "blobs/sha256/"


class _Rootfs(msgspec.Struct):
    diff_ids: tuple[str, ...]


class _Run(msgspec.Struct, rename="pascal"):
    env: tuple[str, ...] | None = None


class _Config(msgspec.Struct):
    architecture: str
    os: str
    rootfs: _Rootfs
    config: _Run | None = None


def opened(source: str, arch: str, cache: Cache, say: Callable[[str], None]) -> Base:
    """The base that ``source`` names.

    That is a layout folder (``FOLDER[@TAG]``), a layout in a tar, or ``HOST/REPOSITORY@sha256:…``.

    Raises:
        UsageError: a registry reference that is not pinned; says what it stands for now.
        BadInputError: for another architecture, altered, or something in it is refused.
        UnavailableError: the registry does not answer.
        ResourceError: a bomb, or no space.
    """
    layout, name = reader.split_reference(source)
    if layout.root.is_dir():
        return _read(layout, layout.resolve(name), arch, source)
    if Path(source).is_file():
        layout = LayoutReader(_unpacked(Path(source), cache))
        return _read(layout, layout.resolve(), arch, source)
    wanted = reference.parse(source)
    with registry.Registry(wanted) as remote:
        if wanted.digest is None:
            found = transfer.digest_of(remote)
            raise UsageError(
                f"base {source} is not pinned: what it names may change",
                hint=f"now it is {wanted.host}/{wanted.repository}@{found}",
            )
        folder = cache.root / "bases" / f"{digest.hex_of(wanted.digest)}-{arch}"
        if not (folder / "index.json").exists():
            say(f"base {source}: pulling")
            transfer.pull(
                remote, folder, "base", lambda m: say(f"  {digest.short(m.digest)} {m.size} bytes"),
                arch=arch,
            )  # fmt: skip
    return _read(LayoutReader(folder), wanted.digest, arch, source)


def _unpacked(path: Path, cache: Cache) -> Path:
    """The layout in the tar ``path``, kept by the tar's digest."""
    final = cache.root / "bases" / digest.hex_of(digest.of_file(path)[0])
    if final.is_dir():
        return final
    total = 0
    with cache.scratch() as work, translate_os_errors("unpack", path):
        made = work / "layout"
        (made / _BLOB).mkdir(parents=True)
        try:
            with tarfile.open(path, "r:*") as archive:
                for info in archive:
                    name = posixpath.normpath(info.name)
                    total += info.size
                    if total > UNPACKED_BYTES_MAX:
                        raise ResourceError(f"{path}: over {UNPACKED_BYTES_MAX} bytes")
                    if info.isdir() and name in {".", "blobs", "blobs/sha256"}:
                        continue
                    _take(archive, info, made, name, str(path))
        except (tarfile.TarError, EOFError, zlib.error) as exc:
            raise BadInputError(f"{path}: not a whole tar: {exc}", hint="make it again") from exc
        LayoutReader(made).check()
        final.parent.mkdir(parents=True, exist_ok=True)
        if not final.is_dir():
            made.rename(final)
    return final


def _take(
    archive: tarfile.TarFile, info: tarfile.TarInfo, made: Path, name: str, what: str
) -> None:
    blob = name.removeprefix(_BLOB)
    known = {"oci-layout", "index.json"}
    if name in {"manifest.json", "repositories"}:  # beside a layout, for `docker load`
        return
    is_blob = name.startswith(_BLOB) and len(blob) == 64 and set(blob) <= set("0123456789abcdef")
    if not info.isreg() or not (name in known or is_blob):
        raise BadInputError(
            f"{what}: {info.name[:120]!r} has no place in an OCI layout",
            hint="skopeo copy docker://… oci-archive:FILE.tar; a root file system is --base-rootfs",
        )
    stream = archive.extractfile(info)
    assert stream is not None
    with (made / name).open("wb") as out:
        while chunk := stream.read(digest.CHUNK_BYTES):
            out.write(chunk)


def _read(layout: LayoutReader, manifest_digest: str, arch: str, what: str) -> Base:
    found = layout.manifest_or_index(manifest_digest)
    if isinstance(found, Index):
        entry = transfer.of_platform(found, arch, what)
        inner = layout.manifest_or_index(entry.digest)
        if isinstance(inner, Index):
            raise BadInputError(f"base {what}: an index of indexes", hint="name one image")
        manifest_digest, found = entry.digest, inner
    config = _config(layout, found, what)
    if (config.architecture, config.os) != (arch, "linux"):
        raise BadInputError(
            f"base {what}: is for {config.os}/{config.architecture}, the target needs linux/{arch}",
            hint="name the base for that architecture",
        )
    if len(config.rootfs.diff_ids) != len(found.layers) or len(found.layers) > LAYERS_MAX:
        raise BadInputError(
            f"base {what}: {len(found.layers)} layers, {len(config.rootfs.diff_ids)} in its "
            f"configuration, at most {LAYERS_MAX}"
        )
    layers, merged, total = [], dict[str, Entry](), 0
    for number, (blob, diff_id) in enumerate(
        zip(found.layers, config.rootfs.diff_ids, strict=True), start=1
    ):
        path, which = layout.verify_blob(blob), f"base {what}, layer {number}"
        found_id, unpacked, read = _merge(path, blob, merged, which, total)
        if found_id != diff_id:
            raise BadInputError(
                f"{which}: does not unpack to what its configuration promises",
                hint="the base is damaged at its source; do not trust it",
            )
        total += read
        facts = LayerFacts(digest=blob.digest, diff_id=diff_id, size=blob.size, unpacked=unpacked)
        kind = tar.LAYER_MEDIA_TYPE if blob.media_type in GZIP_TYPES else PLAIN_TYPES[0]
        layers.append(Layer(path, facts, f"base-{number}", kind))
    env = (config.config.env if config.config else None) or ()
    facts_of = rootfs.sniff(list(merged.values()))
    return Base(manifest_digest, facts_of, tuple(layers), env)


def _config(layout: LayoutReader, manifest: Manifest, what: str) -> _Config:
    if manifest.config.media_type not in CONFIG_TYPES:
        raise BadInputError(f"base {what}: is {manifest.config.media_type[:80]}, not an image")
    raw = layout.read_blob(manifest.config.digest, bytes_max=4 * 1024 * 1024)
    return codec.decode(_Config, raw, what=f"base {what}: configuration")


class _Bounded(io.RawIOBase):
    """Reads on, hashes, and stops at a bound: what a layer unpacks to is nobody's promise."""

    def __init__(self, source: IO[bytes], bytes_max: int, what: str) -> None:
        self._source, self._max, self._what = source, bytes_max, what
        self.hash, self.count = hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size if 0 <= size <= digest.CHUNK_BYTES else digest.CHUNK_BYTES)
        self.hash.update(data)
        self.count += len(data)
        if self.count > self._max:
            raise ResourceError(
                f"{self._what}: with those below it unpacks to over {UNPACKED_BYTES_MAX} bytes",
                hint="is this a base image?",
            )
        return data


def _merge(
    path: Path, blob: Descriptor, merged: dict[str, Entry], what: str, before: int
) -> tuple[str, int, int]:
    """Check a layer and lay it over ``merged``; its diff id, bytes of its files, and of its tar."""
    if blob.media_type not in (*GZIP_TYPES, *PLAIN_TYPES):
        raise BadInputError(
            f"{what}: {blob.media_type} is not read",
            hint="copy the base with gzip layers: skopeo copy --dest-compress-format gzip …",
        )
    unpacked = 0
    with translate_os_errors("read", path), path.open("rb") as raw:
        try:
            packed = blob.media_type in GZIP_TYPES
            plain: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            stream = _Bounded(plain, UNPACKED_BYTES_MAX - before, what)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for info in archive:
                    unpacked += info.size if info.isreg() else 0
                    lay(archive, info, merged, what)
                    if len(merged) > rootfs.ENTRIES_MAX:
                        raise ResourceError(f"{what}: over {rootfs.ENTRIES_MAX} files")
            while stream.read():
                pass
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise BadInputError(f"{what}: not a whole tar: {exc}", hint="pull it again") from exc
    return "sha256:" + stream.hash.hexdigest(), unpacked, stream.count


def lay(
    archive: tarfile.TarFile, info: tarfile.TarInfo, merged: dict[str, Entry], what: str
) -> str | None:
    """Lay a layer's member over ``merged``; its name, None for what hides others or is left out.

    Only the C library's entry has content.

    Raises:
        BadInputError: it is refused.
    """
    checked = rootfs.check_member(info, what)
    if checked is None:
        return None
    name, link = checked
    folder, _, last = name.rpartition("/")
    if last.startswith(_WHITEOUT):
        gone = folder if last == _OPAQUE else posixpath.join(folder, last[len(_WHITEOUT) :])
        for known in [k for k in merged if k.startswith(f"{gone}/") or k == gone != folder]:
            del merged[known]
        return None
    data = b""
    if info.isreg() and rootfs.is_libc(name) and info.size <= rootfs.SNIFF_BYTES_MAX:
        stream = archive.extractfile(info)
        assert stream is not None
        data = stream.read()
    content = (lambda: io.BytesIO(data)) if info.isreg() else None
    merged[name] = Entry(name, info.mode, info.type, info.size, link, content)
    return name
