"""JetPack releases as data: which TensorRT, CUDA, Python and GPU a Jetson has."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec
import tomllib

from edgekit.contracts.errors import BugError


class JetPack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One release. ``verified`` is False where the row is not from a document at hand."""

    version: str
    tensorrt: str
    cuda: str
    python: str
    sm: tuple[int, ...]  # compute capabilities, 87 for 8.7
    verified: bool


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    jetpack: tuple[JetPack, ...]


@cache
def releases() -> dict[str, JetPack]:
    """The known releases by version.

    Raises:
        BugError: the shipped table does not parse.
    """
    raw = (resources.files("edgekit.build") / "tables" / "jetpack.toml").read_text("utf-8")
    try:
        table = msgspec.convert(tomllib.loads(raw), _Table)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as exc:
        raise BugError(f"tables/jetpack.toml: {exc}") from exc
    return {entry.version: entry for entry in table.jetpack}
