"""Content-addressed folder ``<root>/blobs/sha256/<hex>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.contracts import digest
from edgekit.contracts.errors import BadInputError
from edgekit.registry import files


@dataclass(frozen=True)
class BlobFolder:
    """Blobs are written once and never changed; equal content is stored once."""

    root: Path

    def path(self, blob: str) -> Path:
        """Where ``blob`` lies (it may be absent)."""
        return self.root / "blobs" / "sha256" / digest.hex_of(blob)

    def put_bytes(self, data: bytes) -> str:
        """Store ``data`` and return its digest."""
        blob = digest.of_bytes(data)
        if not self._holds(blob, len(data)):
            files.write_atomic(self.path(blob), data)
        return blob

    def put_file(self, source: Path) -> tuple[str, int]:
        """Store a copy of ``source``; returns digest and size.

        Raises:
            BadInputError: unreadable, or it changed while it was copied.
        """
        blob, size = digest.of_file(source)
        if not self._holds(blob, size):
            files.copy_atomic(source, self.path(blob))
            if digest.of_file(self.path(blob))[0] != blob:
                self.path(blob).unlink()
                raise BadInputError(
                    f"{source}: changed while it was being read", hint="run the same command again"
                )
        return blob, size

    def verified(self, blob: str) -> Path:
        """Path of ``blob`` after re-reading it.

        Raises:
            BadInputError: absent or altered.
        """
        path = self.path(blob)
        if digest.of_file(path)[0] != blob:
            raise BadInputError(
                f"{path}: content does not match its digest (corrupted)",
                hint="delete that file and register the original again",
            )
        return path

    def _holds(self, blob: str, size: int) -> bool:
        # A blob of the wrong size is damage from outside (blobs are renamed into place whole):
        # write it again. Equal size with other bytes is found by `verified` when it is used.
        path = self.path(blob)
        return path.is_file() and path.stat().st_size == size
