"""Resize of images with anti-aliasing, in numpy alone: the same whoever decoded them.

A triangle filter whose width grows with the reduction, along one axis and then the other: what
Pillow calls BILINEAR. Loops over the taps of the filter, never over pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def resize(image: Array, height: int, width: int) -> Array:
    """``image`` (rows, columns, channels) in another size and its own dtype."""
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    work = image.astype(np.float32)
    if columns != width:  # first the axis along which rows are whole: each is read once
        work = _along(work.swapaxes(0, 1), width).swapaxes(0, 1)
    if rows != height:
        work = _along(work, height)
    if image.dtype.kind in "iu":
        info = np.iinfo(image.dtype)
        np.clip(np.rint(work, out=work), info.min, info.max, out=work)
    return np.ascontiguousarray(work.astype(image.dtype))


def _along(image: Array, length: int) -> Array:
    starts, weights = _taps(image.shape[0], length)
    shape = (length,) + (1,) * (image.ndim - 1)
    total = np.zeros((length, *image.shape[1:]), np.float32)
    for tap in range(weights.shape[1]):
        index = np.minimum(starts + tap, image.shape[0] - 1)  # beyond the end the weight is 0
        total += image[index] * weights[:, tap].reshape(shape)
    return total


@lru_cache(maxsize=16)
def _taps(size: int, length: int) -> tuple[Array, Array]:
    """Where each output begins to read, and the weights of what it reads from there on."""
    scale = size / length
    support = max(scale, 1.0)  # half the triangle's base
    centres = (np.arange(length) + 0.5) * scale
    starts = np.maximum(0, np.floor(centres - support + 0.5)).astype(np.int64)
    count = math.ceil(support * 2) + 1
    positions = starts[:, None] + np.arange(count)
    weights = np.maximum(0.0, 1.0 - np.abs(positions + 0.5 - centres[:, None]) / support)
    weights[positions >= size] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return starts, weights.astype(np.float32)
