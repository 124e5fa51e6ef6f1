"""What the builder and the CLI need of a registry; `local` is the embedded backend."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgekit.registry.model import DatasetInfo, ModelDraft, ModelVersion


class Registry(Protocol):
    """A store of immutable model versions and of the blobs they name."""

    def put_file(self, source: Path) -> tuple[str, int]:
        """Store a copy of a file; returns digest and size."""

    def put_bytes(self, data: bytes) -> str:
        """Store bytes; returns their digest."""

    def blob(self, digest: str) -> Path:
        """Local path of a verified blob.

        Raises:
            BadInputError: absent or corrupted.
        """

    def add(self, draft: ModelDraft, version: str | None = None) -> tuple[ModelVersion, bool]:
        """Keep ``draft`` and say whether it is new; adding the same content again is not.

        Raises:
            BadInputError: ``version`` exists with other content.
        """

    def get(self, name: str, version: str | None = None) -> ModelVersion:
        """A version, the newest when None.

        Raises:
            BadInputError: unknown; the hint lists what there is.
        """

    def versions(self, name: str | None = None) -> list[ModelVersion]:
        """All versions (of ``name``), oldest first within a name."""

    def add_dataset(self, info: DatasetInfo) -> DatasetInfo:
        """Keep the facts of a data set whose blob is stored."""

    def dataset(self, digest: str) -> DatasetInfo:
        """Facts of a data set by digest or unique prefix.

        Raises:
            BadInputError: unknown or ambiguous.
        """

    def datasets(self) -> list[DatasetInfo]:
        """All data sets."""
