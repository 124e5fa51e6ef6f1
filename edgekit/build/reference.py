"""Drift reference of a variant: which numbers to watch, their frozen bins, and what was seen.

Derived from the evaluation split: its inputs, and what this variant made of them. Small tensors are
watched element by element, large ones by two figures of a sample, other outputs than classes by
their elements or their length. What goes beyond the device's record is not watched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgekit.contracts.contract import Contract, Task
from edgekit.contracts.reference import (
    CLASS_PROBE,
    CONFIDENCE_PROBE,
    Probe,
    ProbeGroup,
    ProbeKind,
    Reference,
    Side,
)
from edgekit.registry.infer import scored_output
from edgekit.registry.npz import Array
from edgekit.stats import probes
from edgekit.stats.bins import CONFIDENCE_BINS
from edgekit.stats.metrics import top_class

INPUTS_MAX = 32  # probes of inputs; the rest of a device's record is for outputs
OUTPUTS_MAX = 8
ELEMENTS_MAX = 4  # an output of more elements is watched by its length
_LABEL_CHARS = 24


def derive(
    contract: Contract,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    labels: Array | None = None,
) -> Reference | None:
    """The reference; None when there is nothing a device could watch.

    Args:
        contract: of the model.
        inputs: of the evaluation split, the first axis is the sample.
        outputs: what the variant answered to them.
        labels: the truth, where it is known.
    """
    found, counts = _classes(contract, outputs)
    right = _right(contract, outputs, labels)
    groups: list[ProbeGroup] = []
    for group, numbers in (*_inputs(contract, inputs), *_outputs(contract, outputs)):
        groups.append(group)
        counts |= _counted(group, numbers)
    if not counts:
        return None
    n = found or len(next(iter(inputs.values())))
    return Reference(
        n=n,
        edges_digest=probes.digest(groups),
        probes=counts,
        groups=tuple(groups),
        confident_right=right,
    )


def _classes(
    contract: Contract, outputs: Mapping[str, Array]
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Counts of predicted classes and confidences; none without classes."""
    spec = scored_output(contract)
    if spec.task is not Task.CLASSIFICATION:
        return 0, {}
    scores = outputs[spec.name]
    scores = scores[_finite(scores)]
    classes, confidence = top_class(scores)
    counts = {
        CLASS_PROBE: np.bincount(classes.ravel(), minlength=scores.shape[-1]),
        CONFIDENCE_PROBE: CONFIDENCE_BINS.count(confidence),
    }
    return int(classes.size), {name: tuple(map(int, found)) for name, found in counts.items()}


def _right(
    contract: Contract, outputs: Mapping[str, Array], labels: Array | None
) -> tuple[int, ...] | None:
    """How many were right, by the bins of their confidence (a reliability diagram's numbers).

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    spec = scored_output(contract)
    if spec.task is not Task.CLASSIFICATION or labels is None or labels.dtype.kind not in "iub":
        return None
    scores = outputs[spec.name]
    if labels.shape != scores.shape[:-1]:
        return None
    finite = _finite(scores)
    classes, confidence = top_class(scores[finite])
    return tuple(map(int, CONFIDENCE_BINS.count(confidence[classes == labels[finite]])))


def _finite(scores: Array) -> Array:
    """Which samples have no NaN and nothing infinite."""
    return np.asarray(np.isfinite(scores).reshape(len(scores), -1).all(axis=1))


def _inputs(contract: Contract, inputs: Mapping[str, Array]) -> Iterator[tuple[ProbeGroup, Array]]:
    left = INPUTS_MAX
    elements = sum(n for n in map(_elements, inputs.values()) if n <= INPUTS_MAX)
    bins = probes.BINS if elements <= probes.MANY else probes.BINS_OF_MANY
    for position, spec in enumerate(contract.inputs):
        rows = inputs[spec.name]
        size = _elements(rows)
        whole = rows.ndim > len(spec.shape)
        fixed = all(isinstance(dim, int) for dim in spec.shape[not whole :])
        kind = ProbeKind.VALUES if fixed and 0 < size <= left else ProbeKind.SUMMARY
        needed = size if kind is ProbeKind.VALUES else 2
        if size == 0 or needed > left or not _is_number(rows):
            continue
        left -= needed
        label = _label(spec.name, f"in{position}")
        yield _group(Side.INPUT, spec.name, label, kind, rows, whole=whole, bins=bins)


def _outputs(
    contract: Contract, outputs: Mapping[str, Array]
) -> Iterator[tuple[ProbeGroup, Array]]:
    left, scored = OUTPUTS_MAX, scored_output(contract)
    for position, spec in enumerate(contract.outputs):
        rows = outputs[spec.name]
        size = _elements(rows)
        classified = spec is scored and spec.task is Task.CLASSIFICATION
        whole = rows.ndim > len(spec.shape)
        fixed = all(isinstance(dim, int) for dim in spec.shape[not whole :])
        kind = ProbeKind.VALUES if fixed and 0 < size <= ELEMENTS_MAX else ProbeKind.NORM
        needed = size if kind is ProbeKind.VALUES else 1
        if classified or size == 0 or needed > left or not _is_number(rows):
            continue
        left -= needed
        label = _label(spec.name, f"out{position}")
        yield _group(Side.OUTPUT, spec.name, label, kind, rows, whole=whole, bins=probes.BINS)


def _group(
    side: Side, tensor: str, label: str, kind: ProbeKind, rows: Array, *, whole: bool, bins: int
) -> tuple[ProbeGroup, Array]:
    numbers = np.stack([probes.figures(np.reshape(row, -1), kind) for row in rows])
    name: Callable[[int], str] = {
        ProbeKind.VALUES: lambda index: f"{label}[{index}]",
        ProbeKind.SUMMARY: lambda index: f"{label}.{('mean', 'spread')[index]}",
        ProbeKind.NORM: lambda _: f"{label}.norm",
    }[kind]
    frozen: tuple[Probe, ...] = tuple(
        probes.frozen(name(index), numbers[:, index], bins) for index in range(numbers.shape[1])
    )
    group = ProbeGroup(side=side, tensor=tensor, kind=kind, probes=frozen, whole=whole)
    return group, numbers


def _counted(group: ProbeGroup, numbers: Array) -> dict[str, tuple[int, ...]]:
    found = {}
    for column, probe in enumerate(group.probes):
        values = numbers[:, column]
        bins = np.searchsorted(np.asarray(probe.edges, dtype=np.float32), values, side="right")
        bins[np.isnan(values)] = probe.size - 1
        found[probe.name] = probes.count(bins.astype(np.uint8), probe.size)
    return found


def _elements(rows: Array) -> int:
    return int(np.prod(rows.shape[1:], dtype=np.int64)) if len(rows) else 0


def _is_number(rows: Array) -> bool:
    return rows.dtype.kind in "fiub"


def _label(name: str, short: str) -> str:
    """A name that fits; a long one is told by its position and a digest."""
    if len(name) <= _LABEL_CHARS:
        return name
    return f"{short}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
