"""NNCF's post-training quantization, of ONNX graphs and of OpenVINO IR.

It calibrates by itself, one sample at a time: larger batches corrupt its statistics of
transformers. Where 16-bit sums saturate, all weights keep to half their range (its overflow fix);
nowhere else, where its default would spoil first layers for nothing. It needs neither torch nor,
for ONNX, OpenVINO.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import preprocess
from edgekit.build.candidates import Candidate, Reduce
from edgekit.contracts.contract import Contract

SAMPLES_MAX = 300  # NNCF's own default: more hardly change its ranges and take their time

Array = npt.NDArray[Any]


def feeds(arrays: Mapping[str, Array], contract: Contract) -> Iterator[dict[str, Array]]:
    """Preprocessed samples, one at a time or in the batch that the model fixes."""
    size, total = _extent(arrays, contract)
    for start in range(0, total, size):
        rows = np.arange(start, start + size) % total
        yield {
            spec.name: preprocess.apply(spec.preprocess, arrays[spec.name][rows])
            for spec in contract.inputs
        }


def quantize(
    model: Any, candidate: Candidate, arrays: Mapping[str, Array], contract: Contract
) -> Any:
    """The quantized form of ``model``, an ONNX or OpenVINO model as NNCF takes either.

    Raises:
        Exception: whatever NNCF raises.
    """
    os.environ["NNCF_CI"] = "ON"  # it reports its use to its makers otherwise
    import nncf  # noqa: PLC0415 - optional, and takes seconds
    from nncf.quantization.advanced_parameters import (  # noqa: PLC0415
        AdvancedQuantizationParameters,
        OverflowFix,
    )

    nncf.set_log_level(logging.ERROR)
    never = candidate.reduce_range is Reduce.NEVER
    samples = _Samples(arrays, contract)
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if candidate.transformer else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE if never else OverflowFix.ENABLE
        ),
    )


class _Samples:
    """NNCF passes over the data several times, and asks how much there is."""

    def __init__(self, arrays: Mapping[str, Array], contract: Contract) -> None:
        self._arrays, self._contract = arrays, contract

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return feeds(self._arrays, self._contract)

    def __len__(self) -> int:
        size, total = _extent(self._arrays, self._contract)
        return max(0, (total + size - 1) // size)


def _extent(arrays: Mapping[str, Array], contract: Contract) -> tuple[int, int]:
    """Samples a run, and samples in all."""
    first = contract.inputs[0].shape[0]
    size = first if isinstance(first, int) else 1
    return size, min(len(arrays[contract.inputs[0].name]), SAMPLES_MAX * size)
