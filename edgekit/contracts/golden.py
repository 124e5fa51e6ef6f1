"""Golden set: inputs and the outputs *this variant* must reproduce (``golden.npz``).

Array names are ``in.<tensor>`` and ``out.<tensor>``; the first axis is the sample. The one
implementation of the comparison is `edgekit.stats.compare`.
"""

from __future__ import annotations

import msgspec

INPUT_PREFIX = "in."
OUTPUT_PREFIX = "out."


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far a replay may stray from the recorded outputs.

    ``abs`` and ``rel`` bound each element: ``|a - b| <= abs + rel * |b|``; ``agreement_min`` is the
    least share of samples that must lie within that bound in every element.
    """

    schema: int = 1
    abs: float = 1e-4
    rel: float = 1e-3
    agreement_min: float = 1.0
