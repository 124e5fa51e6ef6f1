"""Small images to stand on, as OCI layouts: what a base is judged by, in two layers."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from packagekit import roots

from edgekit.contracts import codec, digest
from edgekit.contracts.oci import Descriptor, Index, Manifest, Platform
from edgekit.package import tar
from edgekit.package.layout import transaction

CONFIG = "application/vnd.oci.image.config.v1+json"
ENV = ["PATH=/opt/cuda/bin:/usr/bin:/bin", "NVIDIA_VISIBLE_DEVICES=all"]


def plain(members: list) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def layers(arch: str = "arm64") -> list[bytes]:
    """A base whose second layer removes a file and a folder of the first."""
    gone = [roots.member("./usr/bin/python3.9", b"old"), roots.member("./opt/old/x", b"old")]
    above = [
        roots.member("./usr/bin/.wh.python3.9"),
        roots.member("./opt/old/.wh..wh..opq"),
        roots.member("./opt/new", b"new"),
    ]
    return [plain([*roots.base(arch), *gone]), plain(above)]


def write(
    root: Path,
    *,
    arch: str = "arm64",
    unpacked: list[bytes] | None = None,
    packed: list[bytes] | None = None,
    media_type: str = tar.LAYER_MEDIA_TYPE,
    index: bool = False,
    config_arch: str | None = None,
    tag: str = "base",
) -> str:
    """Write a base; returns the digest ``tag`` points at. ``packed`` lies about ``unpacked``."""
    unpacked = unpacked if unpacked is not None else layers(arch)
    packed = packed if packed is not None else [gzip.compress(each, mtime=0) for each in unpacked]
    config = {
        "architecture": config_arch or arch,
        "os": "linux",
        "config": {"Env": ENV},
        "rootfs": {"type": "layers", "diff_ids": [digest.of_bytes(each) for each in unpacked]},
    }
    with transaction(root) as change:
        stored = tuple(change.put(each, media_type) for each in packed)
        manifest = Manifest(config=change.put(json.dumps(config).encode(), CONFIG), layers=stored)
        entry = change.tag(manifest, tag)
        if index:
            platform = Platform(architecture=arch, os="linux")
            below = Descriptor(
                media_type=entry.media_type, digest=entry.digest, size=entry.size, platform=platform
            )
            top = Index(manifests=(below,))
            entry = change.put(codec.encode(top), top.media_type)
            change.untag(tag)
            change.point(
                tag,
                Descriptor(
                    media_type=top.media_type,
                    digest=entry.digest,
                    size=entry.size,
                    annotations={"org.opencontainers.image.ref.name": tag},
                ),
            )
    return entry.digest
