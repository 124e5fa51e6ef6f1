"""Content digests in OCI form: ``sha256:<64 hex>``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from edgekit.contracts.errors import BadInputError, translate_os_errors

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK_BYTES = 1024 * 1024  # larger gains nothing; smaller costs system calls


def of_bytes(data: bytes | bytearray | memoryview) -> str:
    """Digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> tuple[str, int]:
    """Digest and size in bytes of the file at ``path``.

    Raises:
        BadInputError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    # One buffer for all: pages that are new for each chunk cost as much as hashing them.
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with translate_os_errors("read", path), path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return "sha256:" + digest.hexdigest(), size


def parse(text: str) -> str:
    """Return ``text`` when it is a well-formed sha256 digest.

    Raises:
        BadInputError: it is not. (Digests become file names: this check keeps ``..`` out.)
    """
    if not _DIGEST.fullmatch(text):
        raise BadInputError(f"not a sha256 digest: {text[:80]!r}", hint="expected sha256:<64 hex>")
    return text


def hex_of(digest: str) -> str:
    """The 64 hex characters of ``digest``, safe as a file name."""
    return parse(digest).removeprefix("sha256:")


def short(digest: str) -> str:
    """First twelve hex characters, for people."""
    return digest.removeprefix("sha256:")[:12]
