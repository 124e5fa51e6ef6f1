"""Registration of a model version: check everything, then store blobs, then one transaction."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.contracts import digest
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.contracts.ids import check_name
from edgekit.registry import dataset, graph, infer, npz, splits
from edgekit.registry.dataset import Dataset
from edgekit.registry.model import (
    MODEL_FILE,
    DatasetInfo,
    DatasetRef,
    FileRef,
    Lineage,
    ModelDraft,
    ModelVersion,
    Split,
)
from edgekit.registry.ports import Registry


@dataclass(frozen=True)
class Sources:
    """Where the data comes from: one set to be split, or the splits themselves.

    Each is a path, or the digest of a stored data set in the form ``sha256:…``.
    """

    data: str | None = None
    splits: Mapping[Split, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Registered:
    """The version, whether it is new, and what was assumed."""

    version: ModelVersion
    created: bool
    assumptions: tuple[str, ...]


def read_source(registry: Registry, source: str) -> Dataset:
    """Load a data set from a path or from the registry by digest.

    Raises:
        BadInputError: missing or unreadable.
    """
    if source.startswith("sha256:"):
        info = registry.dataset(source)
        arrays = npz.open_mapped(registry.blob(info.digest))
        return dataset.from_arrays(arrays, f"data set {digest.short(info.digest)}")
    return dataset.load(Path(source))


def store_dataset(registry: Registry, data: Dataset, source: str) -> DatasetInfo:
    """Keep ``data`` in canonical form; the same content is stored once."""
    raw = npz.to_bytes(data.items())
    arrays = {name: f"{array.dtype}{list(array.shape)}" for name, array in data.items().items()}
    blob = registry.put_bytes(raw)
    return registry.add_dataset(DatasetInfo(digest=blob, n=data.n, arrays=arrays, source=source))


def register(
    registry: Registry,
    name: str,
    source: Path,
    sources: Sources,
    *,
    version: str | None = None,
    contract: Contract | None = None,
    drop_max: float | None = None,
    metrics: Mapping[str, float] | None = None,
    card: str = "",
    parent: str | None = None,
    run_id: str | None = None,
) -> Registered:
    """Register the ONNX file ``source`` as a version of ``name``.

    Args:
        registry: where to.
        name: model name.
        source: the ONNX file.
        sources: its data sets.
        version: None takes the next integer.
        contract: None derives it from the graph.
        drop_max: quality budget of a derived contract.
        metrics: figures from training, kept as they are.
        card: model card, Markdown.
        parent: version this one was made from.
        run_id: run of the training system.

    Raises:
        BadInputError: file, contract or data are wrong; nothing is stored then.
        UsageError: arguments that contradict each other.
    """
    check_name(name, "model")
    if contract is not None and drop_max is not None:
        raise UsageError("a contract sets its own quality budget", hint="leave --drop-max away")
    if parent is not None:
        registry.get(name, parent)
    facts = graph.facts(graph.load(source), str(source))
    given = _read(registry, sources)
    sample = given.get(Split.EVALUATION) or next(iter(given.values()))
    notes: list[str] = []
    if contract is None:
        inferred = infer.contract_of(facts, sample.labels, drop_max=drop_max)
        contract = inferred.contract
        notes += inferred.assumptions
    contract = infer.check_against_graph(contract, facts)
    parts = _parts(given, contract, notes, whole=sources.data is not None)
    dataset.check_resolvable(contract.quality, parts[Split.EVALUATION].n)
    blob, size = registry.put_file(source)
    references = tuple(
        DatasetRef(
            split=kind,
            digest=store_dataset(registry, parts[kind], f"{name} {kind.value}").digest,
            n=parts[kind].n,
        )
        for kind in Split
    )
    draft = ModelDraft(
        name=name,
        files=(FileRef(path=MODEL_FILE, sha256=blob, size=size),),
        contract=contract,
        datasets=references,
        lineage=Lineage(
            source=source.name, git_commit=_git_commit(source), parent=parent, run_id=run_id
        ),
        metrics=dict(metrics or {}),
        card=card,
        assumptions=tuple(dict.fromkeys(notes)),
    )
    stored, created = registry.add(draft, version)
    return Registered(stored, created, draft.assumptions)


def _read(registry: Registry, sources: Sources) -> dict[Split, Dataset]:
    if sources.data is not None:
        if sources.splits:
            raise UsageError("give either one data set or the splits", hint="drop --data")
        # A single set stands in for evaluation until the contract is known and it can be cut.
        return {Split.EVALUATION: read_source(registry, sources.data)}
    if not sources.splits:
        raise BadInputError(
            "no data: calibration and evaluation need real samples",
            hint="give --data data.npz (arrays named after the inputs, plus 'labels')",
        )
    return {kind: read_source(registry, source) for kind, source in sources.splits.items()}


def _parts(
    given: Mapping[Split, Dataset], contract: Contract, notes: list[str], *, whole: bool
) -> dict[Split, Dataset]:
    bound: dict[Split, Dataset] = {}
    for kind, data in given.items():
        bound[kind], more = dataset.bind(data, contract)
        notes += more
        dataset.check(bound[kind], contract, "data" if whole else kind.value)
    if whole:
        parts, how = splits.split(bound[Split.EVALUATION])
        notes.append(how)
        return parts
    parts, more = splits.complete(bound)
    notes += more
    splits.check_disjoint(parts)
    return parts


def _git_commit(source: Path) -> str | None:
    """Commit of the working tree that holds ``source``; None when there is none to be found."""
    try:
        done = subprocess.run(
            ["git", "-C", str(source.resolve().parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
