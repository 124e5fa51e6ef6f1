"""An image of a layout as a ``docker save`` archive, for engines that load no OCI layout."""

from __future__ import annotations

import tarfile
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
    with (
        files.atomic_writer(out) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for entry in (*entries, tar.file("manifest.json", manifest)):
            info = tarfile.TarInfo(entry.path)
            info.size, info.mode = entry.size, entry.mode
            assert entry.content is not None
            with entry.content() as content:
                archive.addfile(info, content)
