"""Data sets: read the supported forms, bind them to a contract, refuse what measures nothing."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts.contract import (
    Contract,
    InputSpec,
    OnViolation,
    OutputSpec,
    QualityBudget,
)
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.registry import npz
from edgekit.registry.infer import scored_output
from edgekit.stats import bounds
from edgekit.stats.metrics import LABELS, SLICE, Metric, Truth, metric_of

Array = npt.NDArray[Any]
_FORMS = "an .npz file, a folder of .npy files or a .csv file"
_CSV_ARRAY = "data"  # a csv file names columns, not tensors


@dataclass(frozen=True)
class Dataset:
    """Arrays by input name, first axis the sample; labels and slices where there are any."""

    what: str  # how messages call it
    arrays: dict[str, Array]
    labels: Array | None = None
    slices: Array | None = None  # which slice each sample belongs to: integers, shape (n,)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(next(iter(self.arrays.values())))

    def take(self, rows: npt.NDArray[np.intp]) -> Dataset:
        """The samples at ``rows``, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        slices = None if self.slices is None else self.slices[rows]
        return Dataset(self.what, {k: v[rows] for k, v in self.arrays.items()}, labels, slices)

    def items(self) -> dict[str, Array]:
        """All arrays, labels and slices included under their reserved names."""
        reserved = {LABELS: self.labels, SLICE: self.slices}
        return {**self.arrays, **{k: v for k, v in reserved.items() if v is not None}}

    def hashes(self) -> list[bytes]:
        """Content hash per sample, over its inputs only: the same input twice is one sample."""
        names = sorted(self.arrays)
        rows = []
        for index in range(self.n):
            hasher = hashlib.sha256()
            for name in names:
                hasher.update(np.ascontiguousarray(self.arrays[name][index]).tobytes())
            rows.append(hasher.digest())
        return rows


def load(path: Path) -> Dataset:
    """Read a data set from disk.

    Raises:
        BadInputError: missing, unknown form, empty, ragged or unreadable.
    """
    if not path.exists():
        raise BadInputError(f"data set {path}: no such file", hint=f"expected {_FORMS}")
    if path.is_dir():
        arrays = {entry.stem: _load_npy(entry) for entry in sorted(path.glob("*.npy"))}
        if not arrays:
            raise BadInputError(f"data set {path}: no .npy file in the folder")
    elif path.suffix == ".npz":
        arrays = npz.read(path)
    elif path.suffix == ".csv":
        arrays = _load_csv(path)
    else:
        raise BadInputError(f"data set {path}: unknown form", hint=f"expected {_FORMS}")
    return from_arrays(arrays, f"data set {path}")


def from_arrays(arrays: dict[str, Array], what: str) -> Dataset:
    """A data set from named arrays.

    Raises:
        BadInputError: no array, no sample, or arrays of different lengths.
    """
    inputs = {name: array for name, array in arrays.items() if name not in (LABELS, SLICE)}
    if not inputs:
        raise BadInputError(f"{what}: holds no input array", hint="name arrays after the inputs")
    for name, array in arrays.items():
        if array.ndim == 0:
            raise BadInputError(
                f"{what}: array {name!r} is a single number", hint="the first axis is the sample"
            )
        if array.dtype.kind not in "fiub":
            raise BadInputError(
                f"{what}: array {name!r} holds {array.dtype}, not numbers",
                hint="convert it to numbers before storing it",
            )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BadInputError(
            f"{what}: arrays differ in length: {listed}",
            hint="every array needs one row per sample",
        )
    if 0 in lengths.values():
        raise BadInputError(f"{what}: holds no samples", hint="give at least one")
    slices = arrays.get(SLICE)
    if slices is not None and (slices.ndim != 1 or slices.dtype.kind not in "iub"):
        raise BadInputError(
            f"{what}: {SLICE} is {slices.dtype} of shape {list(slices.shape)}",
            hint="it says which slice each sample belongs to: one integer per sample",
        )
    return Dataset(what, inputs, arrays.get(LABELS), slices)


def _load_npy(path: Path) -> Array:
    with translate_os_errors("read", path):
        try:
            array: Array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as exc:
            raise BadInputError(f"data set {path}: not a readable .npy array") from exc
    return array


def _load_csv(path: Path) -> dict[str, Array]:
    with translate_os_errors("read", path), path.open(newline="", encoding="utf-8") as stream:
        try:
            rows = [row for row in csv.reader(stream) if row]
        except (csv.Error, UnicodeDecodeError) as exc:
            raise BadInputError(f"data set {path}: not a readable csv file: {exc}") from exc
    if len(rows) < 2:
        raise BadInputError(
            f"data set {path}: holds no samples", hint="first line column names, then numbers"
        )
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise BadInputError(
                f"data set {path}: line {number} has {len(row)} columns, the first {len(header)}"
            )
    try:
        values = np.asarray(body, dtype=np.float64)
    except ValueError as exc:
        raise BadInputError(
            f"data set {path}: {exc}", hint="all columns must be numeric; the first line names them"
        ) from exc
    if header[-1].strip() != LABELS:
        return {_CSV_ARRAY: values}
    labels = values[:, -1]
    whole = np.array_equal(labels, np.round(labels))
    return {_CSV_ARRAY: values[:, :-1], LABELS: labels.astype(np.int64) if whole else labels}


def bind(data: Dataset, contract: Contract) -> tuple[Dataset, list[str]]:
    """The data with the names, types and shapes the contract asks for, and what was assumed.

    Raises:
        BadInputError: an input is missing, or an array cannot be what the contract says.
    """
    notes: list[str] = []
    wanted = [spec.name for spec in contract.inputs]
    have = dict(data.arrays)
    if len(wanted) == 1 and len(have) == 1 and wanted[0] not in have:
        ((name, array),) = have.items()
        notes.append(f"array {name!r} is the input {wanted[0]!r}: the model has only one")
        have = {wanted[0]: array}
    missing = [name for name in wanted if name not in have]
    if missing:
        raise BadInputError(
            f"{data.what}: no array for input {missing[0]!r} (it holds {', '.join(have)})",
            hint="name the arrays after the inputs: " + ", ".join(wanted),
        )
    unused = sorted(set(have) - set(wanted))
    if unused:
        notes.append(f"arrays that are no input are left out: {', '.join(unused)}")
    arrays = {s.name: _fit(have[s.name], s, data.what, notes) for s in contract.inputs}
    return Dataset(data.what, arrays, data.labels, data.slices), notes


def _fit(array: Array, spec: InputSpec, what: str, notes: list[str]) -> Array:
    inner = spec.shape[1:]
    shown = f"[samples, {', '.join(str(dim) for dim in inner)}]" if inner else "[samples]"
    fixed = [dim for dim in inner if isinstance(dim, int)]
    fits = len(array.shape) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == have
        for dim, have in zip(inner, array.shape[1:], strict=True)
    )
    if not fits and len(fixed) == len(inner) and array.size == len(array) * int(np.prod(fixed)):
        notes.append(f"array {spec.name!r} of shape {list(array.shape)} is read as {shown}")
        array = array.reshape(len(array), *fixed)
    elif not fits:
        raise BadInputError(
            f"{what}: array {spec.name!r} has shape {list(array.shape)}, the contract says {shown}",
            hint="reshape the array, or correct the contract",
        )
    return _cast(array, spec, what)


def _cast(array: Array, spec: InputSpec, what: str) -> Array:
    target = np.dtype(spec.dtype)
    if array.dtype == target:
        return array
    exact = np.can_cast(array.dtype, target, "same_kind")
    if exact and target.kind in "iu":
        limits = np.iinfo(target)
        exact = bool(array.min() >= limits.min) and bool(array.max() <= limits.max)
    if not exact and target.kind in "iu" and array.dtype.kind in "fiu":
        limits = np.iinfo(target)
        whole = np.isfinite(array).all() and np.array_equal(array, np.round(array))
        exact = bool(whole and array.min() >= limits.min and array.max() <= limits.max)
    if not exact:
        raise BadInputError(
            f"{what}: array {spec.name!r} holds {array.dtype}, the contract says {spec.dtype}",
            hint=f"convert it: array.astype('{spec.dtype}')",
        )
    return array.astype(target)


def check(data: Dataset, contract: Contract, split: str) -> None:
    """Refuse data that would make a figure meaningless.

    Args:
        data: bound data.
        contract: the contract it was bound to.
        split: its role, for messages (``calibration``, ``evaluation``, ``data``…).

    Raises:
        BadInputError: NaN, constant values, or labels that do not fit; names the array.
    """
    constant = 0
    for spec in contract.inputs:
        array = data.arrays[spec.name]
        if array.dtype.kind == "f":
            _check_finite(data.what, array, spec, split)
        same = len(array) > 1 and bool((array == array[:1]).all())
        constant += same
        if same and (array.dtype.kind == "f" or constant == len(contract.inputs)):
            raise BadInputError(
                f"{data.what}: array {spec.name!r}: all {len(array)} samples are the same",
                hint="nothing can be measured on constant data: give real samples",
            )
    metric = metric_of(contract.quality.metric)
    if metric.needs_labels and split in ("tuning", "evaluation", "data"):
        _check_labels(data, scored_output(contract), metric)


def _check_finite(what: str, array: Array, spec: InputSpec, split: str) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any() and (split in ("calibration", "data") or spec.on_nan is OnViolation.REJECT):
        raise BadInputError(
            f"{what}: NaN or infinity in {split}: array {spec.name!r}, {int(bad.sum())} of "
            f"{len(array)} samples (first: sample {int(bad.argmax())})",
            hint="remove these samples, or fill them as the device would",
        )


def _check_labels(data: Dataset, spec: OutputSpec, metric: Metric) -> None:
    labels = data.labels
    if labels is None:
        raise BadInputError(
            f"{data.what}: the metric {metric.name} needs labels and there are none",
            hint=f"add an array called '{LABELS}' with the class of each sample",
        )
    if metric.truth is Truth.VALUES or metric.name == "exact_match":
        if not np.isfinite(labels).all():
            raise BadInputError(f"{data.what}: {LABELS} hold NaN or infinity")
        return
    if labels.dtype.kind not in "iu" or labels.ndim != len(spec.shape) - 1:
        raise BadInputError(
            f"{data.what}: {LABELS} are {labels.dtype} of shape {list(labels.shape)}",
            hint="they must be integers, one per sample (or per position of a sequence)",
        )
    classes = spec.shape[-1]
    if isinstance(classes, int) and not (labels.min() >= 0 and labels.max() < classes):
        raise BadInputError(
            f"{data.what}: {LABELS} run from {labels.min()} to {labels.max()}, the output "
            f"{spec.name!r} has classes 0 to {classes - 1}",
            hint="number the classes from 0 in the order of the output",
        )


def check_resolvable(budget: QualityBudget, samples: int) -> None:
    """Refuse an evaluation set so small that no variant, not even a perfect one, could pass.

    What counts is the confidence of the first look at it (`edgekit.stats.bounds.spent`).

    Raises:
        BadInputError: says how many samples are needed.
    """
    metric = metric_of(budget.metric)
    confidence = bounds.spent(budget.confidence, 0)
    if metric.bound is bounds.Bound.BOOTSTRAP:
        needed = bounds.BOOTSTRAP_SAMPLES_MIN
    elif metric.bound is bounds.Bound.EXACT:
        needed = bounds.samples_to_resolve(budget.drop_max, confidence)
    else:
        needed = bounds.mean_samples_to_resolve(budget.drop_max, confidence, span=metric.span)
    if samples < needed:
        raise BadInputError(
            f"evaluation data needs at least {needed} samples to resolve a drop of "
            f"{budget.drop_max:g} {budget.metric}, has {samples}",
            hint="give more evaluation samples, or allow a larger drop (--drop-max)",
        )
