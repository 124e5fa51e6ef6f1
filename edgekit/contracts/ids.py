"""Names that become topic levels, file names or URL segments, and the shard of a device."""

from __future__ import annotations

import hashlib
import re

from edgekit.contracts.errors import BadInputError

SHARDS = 256
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


def check_name(text: str, what: str) -> str:
    """Return ``text`` when it can be used as a name.

    Lower-case letters, digits, ``.``, ``_`` and ``-``; 1 to 64 characters; starts and ends with a
    letter or digit. No MQTT wildcard, slash or ``..`` can pass.

    Raises:
        BadInputError: names ``what`` and the rule.
    """
    if not _NAME.fullmatch(text) or ".." in text:
        raise BadInputError(
            f"{what} {text[:80]!r} is not a valid name",
            hint="use 1-64 of a-z 0-9 . _ - starting and ending with a letter or digit",
        )
    return text


def shard_of(device: str) -> int:
    """Shard of a device id: first byte of its SHA-256. Stored at joining, never recomputed."""
    return hashlib.sha256(device.encode()).digest()[0] % SHARDS
