"""Everything about one model version that does not depend on the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit.build import representative, tools
from edgekit.build.cache import Cache, Step
from edgekit.build.candidates import Structure
from edgekit.build.data import DataFile
from edgekit.build.ports import BundleContent
from edgekit.build.steps import normalise
from edgekit.contracts.bundle import Role
from edgekit.contracts.contract import Contract, InputSpec
from edgekit.registry import graph, npz
from edgekit.registry.model import ModelVersion, Split
from edgekit.registry.npz import Array
from edgekit.registry.ports import Registry
from edgekit.stats.metrics import LABELS, SLICE


@dataclass(frozen=True)
class Artifact:
    """A model in the cache or the registry: one file, or two where weights lie beside the graph."""

    path: Path
    digest: str
    size: int
    reduced: tuple[str, ...] = ()  # layers whose weights keep to 7 bits, so that nothing saturates
    weights: Path | None = None
    digests: tuple[str, ...] = ()  # of two files, each; of one it is ``digest``
    coverage: float | None = None  # share of quantized layers that run in integers

    def contents(self) -> list[BundleContent]:
        """Its files as a bundle carries them."""
        if self.weights is None:
            return [BundleContent("model.onnx", Role.MODEL, self.path, self.digest)]
        graph, weights = self.digests
        return [
            BundleContent("model.xml", Role.MODEL, self.path, graph),
            BundleContent("model.bin", Role.WEIGHTS, self.weights, weights),
        ]


@dataclass(frozen=True)
class Study:
    """One model version, ready to be quantized and measured."""

    contract: Contract  # as registered
    variant_contract: Contract  # of what is built: without preprocessing that became graph
    original: Artifact
    normalised: Artifact
    structure: Structure
    notes: tuple[str, ...]  # what normalising did
    warnings: tuple[str, ...]  # what calibration misses
    calibration: Path
    calibration_digest: str
    tuning: DataFile  # inputs of the tuning split, followed by those of the golden split
    evaluation: DataFile  # inputs of the evaluation split
    golden: DataFile  # inputs of the golden split alone
    tuning_n: int
    evaluation_n: int
    golden_inputs: Mapping[str, Array]
    evaluation_inputs: Mapping[str, Array]
    tuning_labels: Array | None
    evaluation_labels: Array | None
    tuning_slices: Array | None
    evaluation_slices: Array | None


def prepare(
    registry: Registry,
    model: ModelVersion,
    cache: Cache,
    scratch: Path,
    *,
    fold_preprocessing: bool = False,
) -> Study:
    """Fetch by digest, normalise, and lay out the data the measurements need.

    Raises:
        BadInputError: the registered file cannot be read as a model, or calibration data are
            nothing like the others.
        ResourceError: disk full.
    """
    entry = model.file()
    source = registry.blob(entry.sha256)
    original = Artifact(source, entry.sha256, entry.size)
    prepared = tuple(spec for spec in model.contract.inputs if spec.preprocess)
    folded = prepared if fold_preprocessing else ()
    step = Step(
        "normalise",
        normalise.VERSION,
        tools.versions(),
        {"model": entry.sha256},
        {"folded": folded} if folded else {},
    )

    def make(folder: Path) -> dict[str, Any]:
        graph.load(source)
        notes, structure = normalise.normalise(source, folder / "model.onnx", scratch, folded)
        return {"notes": notes, "structure": structure}

    normal = cache.run(step, make)
    path = normal.file("model.onnx")
    structure = msgspec.convert(normal.facts["structure"], Structure)
    made = Artifact(path, normal.digests["model.onnx"], path.stat().st_size)
    names = [spec.name for spec in model.contract.inputs]
    data = {kind: npz.open_mapped(registry.blob(model.dataset(kind).digest)) for kind in Split}
    tuning, golden, evaluation = data[Split.TUNING], data[Split.GOLDEN], data[Split.EVALUATION]
    seen = {kind.value: model.dataset(kind).digest for kind in (Split.CALIBRATION, Split.TUNING)}
    warned = cache.run(
        Step("representative", representative.VERSION, {}, seen),
        lambda _: {
            "warnings": representative.compare(data[Split.CALIBRATION], tuning, names),
        },
    )

    def inputs(*parts: Split) -> DataFile:
        def make() -> dict[str, Array]:
            if len(parts) == 1:  # as they lie in the registry's file, without a copy in memory
                return {name: data[parts[0]][name] for name in names}
            return {name: np.concatenate([data[kind][name] for kind in parts]) for name in names}

        identity = [names, *(model.dataset(kind).digest for kind in parts)]
        return DataFile(scratch / f"{parts[0].value}.npz", identity, make)

    return Study(
        contract=model.contract,
        variant_contract=(
            _folded(model.contract) if folded and not structure.quantized else model.contract
        ),
        original=original,
        # Passing through means the very file that was registered.
        normalised=original if structure.quantized else made,
        structure=structure,
        notes=(*normal.facts["notes"], *_unfolded(fold_preprocessing, folded)),
        warnings=tuple(warned.facts["warnings"]),
        calibration=registry.blob(model.dataset(Split.CALIBRATION).digest),
        calibration_digest=model.dataset(Split.CALIBRATION).digest,
        tuning=inputs(Split.TUNING, Split.GOLDEN),
        evaluation=inputs(Split.EVALUATION),
        golden=inputs(Split.GOLDEN),
        tuning_n=model.dataset(Split.TUNING).n,
        evaluation_n=model.dataset(Split.EVALUATION).n,
        golden_inputs={name: golden[name] for name in names},
        evaluation_inputs={name: evaluation[name] for name in names},
        tuning_labels=tuning.get(LABELS),
        evaluation_labels=evaluation.get(LABELS),
        tuning_slices=tuning.get(SLICE),
        evaluation_slices=evaluation.get(SLICE),
    )


def _unfolded(wanted: bool, folded: tuple[InputSpec, ...]) -> list[str]:
    return ["no preprocessing is declared: there is nothing to fold"] * (wanted and not folded)


def _folded(contract: Contract) -> Contract:
    inputs = (msgspec.structs.replace(spec, preprocess=()) for spec in contract.inputs)
    return msgspec.structs.replace(contract, inputs=tuple(inputs))
