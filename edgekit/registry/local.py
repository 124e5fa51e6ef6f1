"""Local backend: content-addressed folder plus an SQLite index.

Order of an addition: blobs first, each durable before the next step; one transaction last. A crash
in between leaves blobs that nothing names, never a version that lacks one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from edgekit.contracts import codec
from edgekit.contracts.errors import (
    BadInputError,
    EdgekitError,
    ResourceError,
    UnavailableError,
    translate_os_errors,
)
from edgekit.contracts.ids import check_name
from edgekit.registry.blobs import BlobFolder
from edgekit.registry.model import DatasetInfo, ModelDraft, ModelVersion

T = TypeVar("T")
ROOT_ENV = "EDGEKIT_REGISTRY"
INDEX = "index.sqlite"
_LOCK_WAIT_S = 30.0  # another edgekit command may hold the index; too short fails parallel CI jobs
_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
  name TEXT NOT NULL, version TEXT NOT NULL, ordinal INTEGER NOT NULL, digest TEXT NOT NULL,
  document BLOB NOT NULL, PRIMARY KEY (name, version)) STRICT;
CREATE TABLE IF NOT EXISTS datasets (digest TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
"""


def default_root() -> Path:
    """``$EDGEKIT_REGISTRY``, else ``~/.local/share/edgekit/registry``."""
    return Path(os.environ.get(ROOT_ENV) or "~/.local/share/edgekit/registry").expanduser()


def _translate(exc: sqlite3.Error, index: Path) -> EdgekitError:
    text = str(exc)
    if "full" in text or "readonly" in text or "disk I/O" in text:
        return ResourceError(
            f"registry {index}: {text}", hint="free space and run the same command again"
        )
    if "locked" in text:
        return UnavailableError(
            f"registry {index}: another command is writing to it", hint="run it again when done"
        )
    return BadInputError(
        f"registry {index}: {text}",
        hint="choose the registry's folder with --registry or EDGEKIT_REGISTRY",
    )


class LocalRegistry:
    """`edgekit.registry.ports.Registry` on a local folder; created on the first write."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self._blobs = BlobFolder(self.root)
        self._index = self.root / INDEX

    def put_file(self, source: Path) -> tuple[str, int]:
        """See `Registry.put_file`."""
        return self._blobs.put_file(source)

    def put_bytes(self, data: bytes) -> str:
        """See `Registry.put_bytes`."""
        return self._blobs.put_bytes(data)

    def blob(self, digest: str) -> Path:
        """See `Registry.blob`."""
        return self._blobs.verified(digest)

    def add(self, draft: ModelDraft, version: str | None = None) -> tuple[ModelVersion, bool]:
        """See `Registry.add`."""
        check_name(draft.name, "model")
        if version is not None:
            check_name(version, "version")
        content = draft.content_digest()
        with self._write() as db:
            rows = db.execute(
                "SELECT version, digest, document FROM versions WHERE name = ? ORDER BY ordinal",
                (draft.name,),
            ).fetchall()
            for known, known_digest, document in rows:
                if known_digest == content and version in (None, known):
                    return self._decode(ModelVersion, document), False
                if known == version:
                    raise BadInputError(
                        f"model {draft.name} version {version} exists with other content",
                        hint="versions are immutable: choose another --version",
                    )
            numbers = [int(row[0]) for row in rows if row[0].isdecimal()]
            created = ModelVersion(
                version=version or str(max(numbers, default=0) + 1),
                digest=content,
                created=datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
                **{name: getattr(draft, name) for name in draft.__struct_fields__},
            )
            db.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                (draft.name, created.version, len(rows), content, codec.encode(created)),
            )
        return created, True

    def get(self, name: str, version: str | None = None) -> ModelVersion:
        """See `Registry.get`."""
        found = self.versions(name)
        if not found:
            names = sorted({entry.name for entry in self.versions()})
            raise BadInputError(
                f"model {name!r} is not in the registry {self.root}",
                hint=f"it holds: {', '.join(names)}"
                if names
                else "add it with 'edgekit model add'",
            )
        if version is None:
            return found[-1]
        for entry in found:
            if entry.version == version:
                return entry
        raise BadInputError(
            f"model {name} has no version {version!r}",
            hint="it has: " + ", ".join(entry.version for entry in found),
        )

    def versions(self, name: str | None = None) -> list[ModelVersion]:
        """See `Registry.versions`."""
        query = "SELECT document FROM versions WHERE ?1 IS NULL OR name = ?1 ORDER BY name, ordinal"
        return [self._decode(ModelVersion, row[0]) for row in self._rows(query, name)]

    def add_dataset(self, info: DatasetInfo) -> DatasetInfo:
        """See `Registry.add_dataset`."""
        with self._write() as db:
            db.execute(
                "INSERT OR IGNORE INTO datasets VALUES (?, ?)", (info.digest, codec.encode(info))
            )
        return info

    def dataset(self, digest: str) -> DatasetInfo:
        """See `Registry.dataset`."""
        wanted = digest.removeprefix("sha256:")
        found = [
            info
            for info in self.datasets()
            if wanted and info.digest.removeprefix("sha256:").startswith(wanted)
        ]
        if len(found) == 1:
            return found[0]
        problem = "is not in the registry" if not found else "fits several data sets"
        raise BadInputError(
            f"data set {digest[:80]!r} {problem}", hint="see 'edgekit dataset list'"
        )

    def datasets(self) -> list[DatasetInfo]:
        """See `Registry.datasets`."""
        rows = self._rows("SELECT document FROM datasets ORDER BY digest")
        return [self._decode(DatasetInfo, row[0]) for row in rows]

    def _decode(self, kind: type[T], document: bytes) -> T:
        return codec.decode(kind, document, what=f"registry {self._index}")

    def _rows(self, query: str, *values: object) -> list[tuple[bytes]]:
        if not self._index.exists():
            return []
        with self._connect() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with translate_os_errors("create", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with self._connect() as db:
            db.executescript(_SCHEMA)
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self._index, timeout=_LOCK_WAIT_S, isolation_level=None)
            ) as db:
                db.execute("PRAGMA synchronous = FULL")
                yield db
        except sqlite3.Error as exc:
            raise _translate(exc, self._index) from exc
