"""Monitor: what is recorded of each inference beside its latency. The hot path.

Of a batch the first sample is looked at: one record stands for one request. Inputs are seen as they
arrived, before clamping and preprocessing. Nothing here may fail an inference: what cannot be taken
is recorded as not taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgekit.contracts.contract import Contract
from edgekit.contracts.reference import ProbeKind, Reference, Side
from edgekit.stats.metrics import top_of_row
from edgekit.stats.probes import Taker
from edgekit_runtime.errors import GuardError
from edgekit_runtime.guard import Flags
from edgekit_runtime.monitors import rules
from edgekit_runtime.ports import Array
from edgekit_runtime.region import ABSENT, BROKE, Sight

_VIOLATION = int(Flags.INPUT_NAN | Flags.INPUT_RANGE)
_RARE = _VIOLATION | int(Flags.INPUT_AGE)
_OUTPUT_NAN = int(Flags.OUTPUT_NAN)


class Monitor:
    """Made once for a loaded model; not thread-safe."""

    def __init__(self, contract: Contract, reference: Reference | None, scored: str | None) -> None:
        """``scored``: the output that classifies, if one does."""
        groups = reference.groups if reference is not None else ()
        self._contract, self._scored = contract, scored
        self._inputs = Taker([group for group in groups if group.side is Side.INPUT])
        self._outputs = Taker([group for group in groups if group.side is Side.OUTPUT])
        self._no_inputs = bytes([ABSENT]) * len(self._inputs.probes)
        self._no_outputs = bytes([ABSENT]) * len(self._outputs.probes)
        self._bounds = _bounds(contract, reference)
        self.dated = any(spec.age_s_max is not None for spec in contract.inputs)

    def observe(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], flags: int, old: int = 0
    ) -> Sight:
        """What was seen of an inference that was answered.

        Args:
            inputs: as they arrived.
            outputs: what was answered.
            flags: what was found about both.
            old: see `rules.age_bits`.
        """
        bins, broken = b"", 0
        if flags & _RARE:
            broken = rules.broken(self._contract, inputs, old)
        if self._no_inputs:
            bins = self._input_bins(inputs, flags)
        if self._no_outputs:
            bins += self._output_bins(outputs, flags)
        if self._scored is None:
            return Sight(-1, math.nan, broken, bins)
        scores = outputs[self._scored]
        if scores.ndim == 0 or scores.size == 0:
            return Sight(-1, math.nan, broken, bins)
        row = scores[0] if scores.ndim == 2 else scores.reshape(-1, scores.shape[-1])[0]
        cls, confidence = top_of_row(row)
        return Sight(cls, confidence, broken, bins)

    def refused(self, inputs: Mapping[str, Array], error: GuardError, old: int) -> Sight:
        """What was seen of an input that the guard refused; its bins are not counted."""
        broken = rules.broken(self._contract, inputs, old)
        if not broken:
            return Sight(rules.place(self._contract, error.tensor))
        return Sight(broken=broken, bins=self._input_bins(inputs, _VIOLATION))

    def _input_bins(self, inputs: Mapping[str, Array], flags: int) -> bytes:
        numbers = self._inputs.take(inputs)
        if numbers is None:
            return self._no_inputs
        bins = self._inputs.bins(numbers)
        if flags & _VIOLATION:
            bins = self._inputs.nan_bins(numbers, bins)
            kept = (
                low <= number <= high
                for number, (low, high) in zip(numbers, self._bounds, strict=True)
            )
            bins = bytes(
                found if well else found | BROKE for found, well in zip(bins, kept, strict=True)
            )
        return bins

    def _output_bins(self, outputs: Mapping[str, Array], flags: int) -> bytes:
        numbers = self._outputs.take(outputs)
        if numbers is None:
            return self._no_outputs
        bins = self._outputs.bins(numbers)
        return self._outputs.nan_bins(numbers, bins) if flags & _OUTPUT_NAN else bins


def _bounds(contract: Contract, reference: Reference | None) -> list[tuple[float, float]]:
    """Range of each input probe; the largest number where there is none, so that infinity breaks.

    A mean, or a spread, has no range of its own.
    """
    specs = {spec.name: spec for spec in contract.inputs}
    most = float(np.finfo(np.float32).max)
    found: list[tuple[float, float]] = []
    for group in reference.groups if reference is not None else ():
        if group.side is Side.INPUT:
            spec = specs.get(group.tensor) if group.kind is ProbeKind.VALUES else None
            bounds = spec.range if spec is not None else None
            low, high = (float(np.float32(edge)) for edge in bounds or (-most, most))
            found += [(low, high)] * len(group.probes)
    return found
