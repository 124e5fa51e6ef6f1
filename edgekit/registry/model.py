"""What a registry holds: immutable values, JSON on disk."""

from __future__ import annotations

from enum import Enum

import msgspec

from edgekit.contracts import codec, digest
from edgekit.contracts.contract import Contract

MODEL_FILE = "model.onnx"


class Split(str, Enum):
    """What a data set may be used for; disjoint by sample content within one model version."""

    CALIBRATION = "calibration"  # ranges for quantization
    TUNING = "tuning"  # every choice between candidates looks here
    EVALUATION = "evaluation"  # the final gate only
    GOLDEN = "golden"  # replayed on devices


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model version."""

    path: str
    sha256: str
    size: int


class DatasetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A stored data set: canonical ``.npz``, named by the digest of its bytes."""

    digest: str
    n: int
    arrays: dict[str, str]  # name -> "dtype[shape]", for people
    source: str


class DatasetRef(msgspec.Struct, frozen=True, kw_only=True):
    """A data set in the role a model version gives it."""

    split: Split
    digest: str
    n: int


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version came from. Not part of its identity."""

    source: str
    git_commit: str | None = None
    parent: str | None = None  # version of the same model
    run_id: str | None = None


class ModelDraft(msgspec.Struct, frozen=True, kw_only=True):
    """A model version before it has a version: what `Registry.add` is asked to keep."""

    name: str
    files: tuple[FileRef, ...]
    contract: Contract
    datasets: tuple[DatasetRef, ...]
    lineage: Lineage
    metrics: dict[str, float] = {}
    card: str = ""
    assumptions: tuple[str, ...] = ()

    def content_digest(self) -> str:
        """Identity of the content: everything but the lineage and what was assumed on the way."""
        content = [self.name, self.files, self.contract, self.datasets, self.metrics, self.card]
        return digest.of_bytes(codec.encode(content))


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable version."""

    schema: int = 1
    name: str
    version: str
    digest: str  # ModelDraft.content_digest
    created: str  # RFC 3339, UTC
    files: tuple[FileRef, ...]
    contract: Contract
    datasets: tuple[DatasetRef, ...]
    lineage: Lineage
    metrics: dict[str, float] = {}
    card: str = ""
    assumptions: tuple[str, ...] = ()

    def file(self, path: str = MODEL_FILE) -> FileRef:
        """The file called ``path``."""
        return next(entry for entry in self.files if entry.path == path)

    def dataset(self, split: Split) -> DatasetRef:
        """The data set of ``split``; every version has all four."""
        return next(entry for entry in self.datasets if entry.split is split)
