"""What the pipeline needs from outside: somebody who writes bundles, and somebody who listens.

The writer lives in `edgekit.package`, which may import the builder and not the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgekit.contracts.bundle import Role
from edgekit.contracts.errors import BadInputError


@dataclass(frozen=True)
class BundleHead:
    """Identity of a bundle: the manifest's fields besides the files."""

    model: str
    version: str
    target: str
    precision: str
    engine: str
    engine_versions: str
    labels: dict[str, Any] = field(default_factory=dict)
    engine_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BundleContent:
    """One file of a bundle: bytes, or a path to copy from.

    ``sha256`` is the digest that a path's content must have, where its maker knows it.
    """

    path: str
    role: Role
    source: bytes | Path
    sha256: str | None = None


class AlteredError(BadInputError):
    """A file is not what it was when it was made."""

    def __init__(self, path: Path) -> None:
        """Of the file at ``path``."""
        super().__init__(f"{path}: was altered", hint="run the same command again")
        self.path = path


@dataclass(frozen=True)
class WrittenBundle:
    """Digest of the OCI manifest and the size of everything it refers to."""

    digest: str
    size: int  # bytes: manifest, config and files


class BundleWriter(Protocol):
    """Writes bundles into an OCI layout folder."""

    def write(
        self, layout: Path, head: BundleHead, files: Sequence[BundleContent]
    ) -> WrittenBundle:
        """Write one bundle and tag it; atomic as a whole.

        Raises:
            AlteredError: a file has another digest than it must have.
            ResourceError: disk full; the layout is as before.
        """

    def withdraw(self, layout: Path, model: str, version: str, target: str) -> None:
        """Remove the tag of a bundle, if there is one."""


@dataclass(frozen=True)
class Progress:
    """One unit of work has begun. ``eta_s`` is None until there is something to estimate from."""

    done: int
    total: int
    what: str
    eta_s: float | None


OnProgress = Callable[[Progress], None]
