"""How far two samples are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def ks_distance(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Kolmogorov-Smirnov statistic: the largest gap between the two distribution functions.

    Args:
        a: numbers of any shape, none of them NaN.
        b: as ``a``.

    Returns:
        0 for equal distributions up to 1 for values that do not overlap; 0 when one is empty.
        Massey, "The Kolmogorov-Smirnov Test for Goodness of Fit", JASA 46 (1951).
    """
    if not a.size or not b.size:
        return 0.0
    first, second = np.sort(a, axis=None), np.sort(b, axis=None)
    at = np.concatenate([first, second])
    shares = (np.searchsorted(each, at, side="right") / each.size for each in (first, second))
    return float(np.abs(np.subtract(*shares)).max())
