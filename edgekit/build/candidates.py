"""Which variants compete for a target. fp32 always does: INT8 has to win."""

from __future__ import annotations

from enum import Enum

import msgspec

from edgekit.build.target import Activations, TargetProfile


class Ops(str, Enum):
    """Which operators are quantized."""

    WEIGHTS = "weights"  # Conv, ConvTranspose, MatMul and Gemm with constant weights
    ALL = "all"  # everything the quantizer knows


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to make a variant; equal candidates of two targets are one piece of work."""

    name: str
    precision: str
    ops: Ops | None = None  # None: not quantized
    activations: Activations | None = None
    per_channel: bool = True
    reduce_range: bool = False


FP32 = Candidate(name="fp32", precision="fp32")


def candidates_for(target: TargetProfile) -> tuple[Candidate, ...]:
    """The candidates of ``target``, fp32 first."""
    quantized = tuple(
        Candidate(
            name=f"int8-{ops.value}-{target.activations.value}{'-rr' * target.reduce_range}",
            precision="int8",
            ops=ops,
            activations=target.activations,
            reduce_range=target.reduce_range,
        )
        for ops in Ops
    )
    return (FP32, *quantized)
