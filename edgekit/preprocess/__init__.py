"""The one implementation of declared preprocessing: calibration, evaluation and device alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts.contract import Normalise, PreprocessStep, Transpose

Array = npt.NDArray[Any]


def apply(steps: Sequence[PreprocessStep], array: Array) -> Array:
    """Run ``steps`` in order over ``array`` (batch axis first); the input is left unchanged."""
    for step in steps:
        if isinstance(step, Normalise):
            array = _normalise(step, array)
        elif isinstance(step, Transpose):
            array = np.transpose(array, step.order)
        else:
            from typing_extensions import assert_never  # noqa: PLC0415 - 4 ms of a device's start

            assert_never(step)
    return array


def _normalise(step: Normalise, array: Array) -> Array:
    shape = [1] * array.ndim
    if len(step.mean) > 1:
        shape[step.axis] = len(step.mean)
    mean = np.asarray(step.mean, dtype=np.float32).reshape(shape)
    std = np.asarray(step.std, dtype=np.float32).reshape(shape)
    return (array.astype(np.float32) - mean) / std
