"""An image of a layout as a ``docker save`` archive, for engines that load no OCI layout."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.oci import Index, LayoutReader
from edgekit.package import tar
from edgekit.registry import files


def save(reader: LayoutReader, manifest_digest: str, name: str, out: Path) -> None:
    """Write the image as ``out``, to be loaded under ``name`` (``repository:tag``).

    Raises:
        BadInputError: an index or a bundle; a blob is missing or altered.
        ResourceError: no space.
    """
    entries = _entries(reader, manifest_digest, name)
    with files.atomic_writer(out) as stream:
        for chunk in _packed(entries):
            stream.write(chunk)


def stream(reader: LayoutReader, manifest_digest: str, name: str) -> Iterator[bytes]:
    """The bytes that `save` writes; everything is verified before the first of them.

    Raises:
        BadInputError: as `save`.
    """
    return _packed(_entries(reader, manifest_digest, name))


def _entries(reader: LayoutReader, manifest_digest: str, name: str) -> list[tar.Entry]:
    image = reader.manifest_or_index(manifest_digest)
    if isinstance(image, Index) or "image.config" not in image.config.media_type:
        raise BadInputError(
            f"{reader.root}: {digest.short(manifest_digest)} is not an image of one platform",
            hint="name one: LAYOUT@MODEL-VERSION-TARGET",
        )
    config = f"{digest.hex_of(image.config.digest)}.json"
    blobs = {config: reader.verify_blob(image.config)}
    layers = []
    for layer in image.layers:
        layers.append(f"{digest.hex_of(layer.digest)}.tar.gz")
        blobs[layers[-1]] = reader.verify_blob(layer)
    manifest = codec.encode([{"Config": config, "RepoTags": [name], "Layers": layers}])
    entries = [tar.file(path, source) for path, source in blobs.items()]
    return [*entries, tar.file("manifest.json", manifest)]


def _packed(entries: Iterable[tar.Entry]) -> Iterator[bytes]:
    """A tar, piece by piece: an archive of an image does not fit in a small machine's memory."""
    for entry in entries:
        info = tarfile.TarInfo(entry.path)
        info.size, info.mode = entry.size, entry.mode
        yield info.tobuf(tarfile.GNU_FORMAT)
        assert entry.content is not None
        with entry.content() as content:
            while chunk := content.read(digest.CHUNK_BYTES):
                yield chunk
        yield b"\0" * (-entry.size % tarfile.BLOCKSIZE)
    yield b"\0" * tarfile.RECORDSIZE
