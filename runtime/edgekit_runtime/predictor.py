"""One loaded model with its contract: guard, preprocessing, engine. Used by agent and evaluation.

What the build measures is therefore what the device runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import msgspec
import numpy as np

from edgekit import preprocess
from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.reference import Reference
from edgekit.contracts.shadow import Expectation
from edgekit.contracts.verdict import Verdict
from edgekit_runtime import bundles, contract_facts, engines, guard
from edgekit_runtime.bundles import Bundle
from edgekit_runtime.engines import ladder
from edgekit_runtime.golden import GoldenSet
from edgekit_runtime.guard import Flags
from edgekit_runtime.ports import Array, Engine, LoadedModel
from edgekit_runtime.screen import Screen, all_finite

CHUNK_SAMPLES = 64  # larger chunks gain little on the cores edge devices have, and cost memory


class Predictor(msgspec.Struct, frozen=True, dict=True):
    """A model ready to answer."""

    bundle: Bundle
    engine: Engine
    model: LoadedModel
    failure: None = None  # a model in this process lives as long as the process

    @property
    def manifest(self) -> BundleManifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @cached_property
    def scored(self) -> str | None:
        """Output whose class and confidence are counted; None when none classifies."""
        if contract_facts.class_count(self.contract) == 0:
            return None
        return contract_facts.scored_output(self.contract).name

    @property
    def reference(self) -> Reference | None:
        """Which numbers are watched, and their bins."""
        return self.bundle.reference

    @property
    def expectation(self) -> Expectation | None:
        """See `edgekit_runtime.ports.Loaded.expectation`."""
        return self.bundle.expectation

    def close(self) -> None:
        """Nothing to end: memory goes with the last reference."""

    @property
    def contract(self) -> Contract:
        """The bundle's contract."""
        return self.bundle.contract

    def predict(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], Flags]:
        """Outputs and flags of one call.

        Raises:
            GuardError: the input breaks the contract.
            EngineError: the engine failed.
        """
        flags = Flags.NONE
        if not self._screen.passes(arrays):
            flags = guard.check(self.contract, arrays)
            if flags & Flags.CLAMP:
                arrays = guard.mend(self.contract, arrays)
        outputs = self.model.run(self._prepared(arrays) if self._prepares else arrays)
        for values in outputs.values():
            if values.dtype.kind == "f" and not all_finite(values):
                flags |= Flags.OUTPUT_NAN
        return outputs, flags

    def predict_rows(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], Flags]:
        """Outputs and flags of any number of rows: in several calls where the batch size is fixed.

        Raises:
            GuardError: an input breaks the contract.
            EngineError: the engine failed.
        """
        size = self._fixed_rows
        if size is None or not self._splits(arrays, size):
            return self.predict(arrays)
        flags = Flags.NONE
        parts: dict[str, list[Array]] = {}
        rows = len(arrays[self.contract.inputs[0].name])
        for start in range(0, rows, size):
            feed = {name: array[start : start + size] for name, array in arrays.items()}
            keep = min(size, rows - start)
            if keep < size:
                feed = {name: _pad(array, size) for name, array in feed.items()}
            outputs, found = self.predict(feed)
            flags |= found
            for name, values in outputs.items():
                parts.setdefault(name, []).append(values[:keep])
        return {name: np.concatenate(values) for name, values in parts.items()}, flags

    @cached_property
    def _fixed_rows(self) -> int | None:
        """Batch size that the graph insists on; None when there is none, or not one for all."""
        shapes = [spec.shape for spec in self.contract.inputs]
        shapes += [spec.shape for spec in self.contract.outputs]
        firsts = {shape[0] if shape else None for shape in shapes}
        (first,) = firsts if len(firsts) == 1 else (None,)
        return first if isinstance(first, int) else None

    def _splits(self, arrays: Mapping[str, Array], size: int) -> bool:
        """Whether these are whole rows, and not just as many; what else is wrong the guard says."""
        wanted = {spec.name: spec for spec in self.contract.inputs}
        if set(arrays) != set(wanted):
            return False
        lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
        whole = all(
            array.ndim == len(wanted[name].shape) and array.dtype == np.dtype(wanted[name].dtype)
            for name, array in arrays.items()
        )
        return whole and len(lengths) == 1 and not lengths & {0, size}

    def predict_samples(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs for arrays whose first axis is the sample, in chunks the model can take.

        Raises:
            BadInputError: no samples, unequal lengths, or a sample breaks the contract.
            EngineError: the engine failed.
        """
        feeds = self._feeds(arrays)
        parts: dict[str, list[Array]] = {}
        for feed, keep in feeds:
            outputs, _ = self.predict(feed)
            for name, values in outputs.items():
                parts.setdefault(name, []).append(values[None] if keep is None else values[:keep])
        return {name: np.concatenate(values) for name, values in parts.items()}

    def single(self, arrays: Mapping[str, Array], index: int) -> dict[str, Array]:
        """Sample ``index`` as one call of batch size one (or the fixed batch size).

        Raises:
            BadInputError: the sample does not fit the contract.
        """
        rows = {
            spec.name: _pick(arrays, spec.name)[index : index + 1] for spec in self.contract.inputs
        }
        feed, _ = next(self._feeds(rows))
        return feed

    def canary(self) -> Mapping[str, Array]:
        """An input that shows whether the model still computes: golden, else as the contract asks.

        Raises:
            BadInputError: the golden set does not fit the contract.
        """
        if self.bundle.golden is not None:
            return self._prepared(self.single(self.bundle.golden.inputs, 0))
        arrays: dict[str, Array] = {}
        for spec in self.contract.inputs:
            shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
            low, high = spec.range or (0.0, 0.0)
            arrays[spec.name] = np.full(shape, (low + high) / 2, dtype=spec.dtype)
        return self._prepared(arrays)

    @cached_property
    def _screen(self) -> Screen:
        return Screen(self.contract)

    @cached_property
    def _prepares(self) -> bool:
        return any(spec.preprocess for spec in self.contract.inputs)

    def _prepared(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        if not self._prepares:
            return arrays
        return {
            spec.name: preprocess.apply(spec.preprocess, arrays[spec.name])
            for spec in self.contract.inputs
        }

    def replay_golden(self, golden: GoldenSet) -> Verdict:
        """Verdict of the golden set. Raises like `predict_samples`."""
        from edgekit.stats import compare  # noqa: PLC0415 - most starts replay nothing

        actual = self.predict_samples(golden.inputs)
        return compare.golden(golden.outputs, actual, golden.tolerance)

    def _feeds(self, arrays: Mapping[str, Array]) -> Iterator[tuple[dict[str, Array], int | None]]:
        """Yields what to feed and how many rows of the outputs count (None: no batch axis)."""
        picked = {spec.name: _pick(arrays, spec.name) for spec in self.contract.inputs}
        picked = {
            spec.name: guard.conform(spec, picked[spec.name]) for spec in self.contract.inputs
        }
        lengths = {name: len(array) for name, array in picked.items()}
        total = min(lengths.values())
        if total == 0 or len(set(lengths.values())) > 1:
            raise BadInputError(f"samples per input: {lengths}; they must be equal and not zero")
        batched = all(picked[spec.name].ndim == len(spec.shape) for spec in self.contract.inputs)
        first = self.contract.inputs[0].shape[0]
        if not batched:
            # The model has no batch axis: every row of the data is one call.
            for index in range(total):
                yield {name: array[index] for name, array in picked.items()}, None
            return
        size = first if isinstance(first, int) else CHUNK_SAMPLES
        for start in range(0, total, size):
            feed = {name: array[start : start + size] for name, array in picked.items()}
            keep = min(size, total - start)
            if keep < size and isinstance(first, int):
                # A fixed batch needs its full length: repeat the last row and drop its answers.
                feed = {name: _pad(array, size) for name, array in feed.items()}
            yield feed, keep


def load(bundle: Bundle, *, threads: int = 1, engine: Engine | None = None) -> Predictor:
    """Load a bundle into its engine, or into an accelerator that reproduces its golden set.

    Raises:
        UnsuitableError: engine absent or outside the bundle's version range.
        BadInputError: the model cannot be loaded or does not have the contract's tensors.
    """
    offered = engine is None and bundle.manifest.labels.get(ladder.LABEL)
    engine = engine or engines.create(bundle.manifest.engine, bundle.manifest.engine_options)
    bundles.check_engine(bundle.manifest, engine.name, engine.version)

    def plain() -> LoadedModel:
        return engine.load(bundle.model_path, weights=bundle.weights_path, threads=threads)

    def replayed(model: LoadedModel) -> Verdict | None:
        if bundle.golden is None:
            return None
        return Predictor(bundle, engine, _checked(bundle, model)).replay_golden(bundle.golden)

    if offered:
        rungs = engines.accelerated(str(offered), bundle.model_path, threads=threads)
        model: LoadedModel = ladder.climb([*rungs, ladder.Rung(engine.name, plain)], replayed)
    else:
        model = plain()
    return Predictor(bundle, engine, _checked(bundle, model))


def _checked(bundle: Bundle, model: LoadedModel) -> LoadedModel:
    """``model`` when it has the contract's tensors. Raises `BadInputError`."""
    wanted = {spec.name for spec in bundle.contract.inputs}
    if set(model.input_names) != wanted:
        raise BadInputError(
            f"bundle {bundle.manifest.model} {bundle.manifest.version}: the model's inputs "
            f"{sorted(model.input_names)} are not the contract's {sorted(wanted)}"
        )
    missing = {spec.name for spec in bundle.contract.outputs} - set(model.output_names)
    if missing:
        raise BadInputError(
            f"bundle {bundle.manifest.model} {bundle.manifest.version}: the model has no output "
            f"{min(missing)!r}"
        )
    return model


def _pick(arrays: Mapping[str, Array], name: str) -> Array:
    array = arrays.get(name)
    if array is None or array.ndim == 0:
        raise BadInputError(
            f"data has no array {name!r} with a sample axis",
            hint="arrays found: " + (", ".join(sorted(arrays)) or "none"),
        )
    return array


def _pad(array: Array, size: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
