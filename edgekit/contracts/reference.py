"""Reference: what a variant's inputs and outputs looked like on the evaluation data, and the bins.

A *probe* is one number taken from every inference: an element of a small tensor, a figure of a
large one. Its bins are frozen at build time, so that counts from any device and time add up; the
device sends counts, never values. Values are single precision by definition: builder and device
then agree on which side of an edge one lies.
"""

from __future__ import annotations

import math
from enum import Enum
from itertools import pairwise

import msgspec

from edgekit.contracts.errors import BadInputError

PROBES_MAX = 40  # a byte each in the device's counter records
NAME_CHARS_MAX = 48
EDGES_MAX = 64
CLASS_PROBE, CONFIDENCE_PROBE = "class", "confidence"  # every classifier has these two


class Side(str, Enum):
    """Which end of the model a tensor is at."""

    INPUT = "input"
    OUTPUT = "output"


class ProbeKind(str, Enum):
    """What is taken from the first sample of a tensor."""

    VALUES = "values"  # each element, one probe each
    SUMMARY = "summary"  # mean and spread of elements at even distances: two probes
    NORM = "norm"  # Euclidean length: one probe


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Name in windows, and the bin edges (ascending, exact in single precision)."""

    name: str
    edges: tuple[float, ...]

    @property
    def size(self) -> int:
        """Number of counts: below, between the edges, above, NaN."""
        return len(self.edges) + 2


class ProbeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The probes of one tensor."""

    side: Side
    tensor: str
    kind: ProbeKind
    probes: tuple[Probe, ...]
    whole: bool = False  # the tensor has no batch axis: all of it is one sample


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """``reference.json`` of a bundle. Windows of equal ``edges_digest`` may be added up."""

    schema: int = 1
    n: int
    edges_digest: str
    probes: dict[str, tuple[int, ...]]  # counts on the evaluation data
    groups: tuple[ProbeGroup, ...] = ()  # absent in bundles built before there were any
    # Confidence calibration: of the samples in each bin of the probe `confidence`, how many were
    # classified as they are labelled. None where the evaluation data have no such labels.
    confident_right: tuple[int, ...] | None = None


def validate(reference: Reference) -> Reference:
    """Return ``reference`` when a device can count by it.

    Raises:
        BadInputError: names the probe.
    """
    _require(reference.schema == 1, "schema", f"{reference.schema} is not known (only 1)")
    right, counts = reference.confident_right, reference.probes.get(CONFIDENCE_PROBE, ())
    if right is not None:
        fits = len(right) == len(counts) and all(
            0 <= r <= n for r, n in zip(right, counts, strict=True)
        )
        _require(fits, "confident_right", "is not a part of the counts of `confidence`")
    names = [probe.name for group in reference.groups for probe in group.probes]
    _require(len(names) <= PROBES_MAX, "groups", f"{len(names)} probes, allowed {PROBES_MAX}")
    taken = {CLASS_PROBE, CONFIDENCE_PROBE}
    for group in reference.groups:
        wanted = {ProbeKind.SUMMARY: 2, ProbeKind.NORM: 1}.get(group.kind, len(group.probes))
        _require(len(group.probes) == wanted > 0, group.tensor, f"{len(group.probes)} probes")
        for probe in group.probes:
            _check_probe(probe)
            _require(probe.name not in taken, probe.name, "two probes have this name")
            taken.add(probe.name)
    return reference


def _check_probe(probe: Probe) -> None:
    edges = probe.edges
    _require(0 < len(probe.name) <= NAME_CHARS_MAX, probe.name[:80], "name is too long or empty")
    _require(2 <= len(edges) <= EDGES_MAX, probe.name, f"{len(edges)} edges")
    rising = all(low < high for low, high in pairwise(edges))
    _require(rising and all(map(math.isfinite, edges)), probe.name, "edges are not ascending")


def _require(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise BadInputError(
            f"reference: {field}: {problem}", hint="build the bundle again with `edgekit build`"
        )
