"""Does calibration look like what variants are judged on?

What calibration did not see is clipped in every static variant: a model calibrated on clean samples
lost 27 points on noisy ones while its average stayed green. Gates see that where the evaluation
data show it; here it is said beforehand, and data that are nothing like it are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgekit.contracts.errors import BadInputError
from edgekit.registry import npz
from edgekit.registry.npz import Array
from edgekit.stats.metrics import SLICE
from edgekit.stats.two_samples import ks_distance

VERSION = 1
DISTANCE_MAX = 0.5  # between values; splits of one set differ by 0.1, noise and real data by more
OUTSIDE_MAX = 0.05  # of the samples; extremes of so few are an outlier's, and are clipped rightly
_MARGIN = 0.1  # of the range on each side: what calibration widens is not outside
_ROWS, _VALUES = 512, 4096  # compared: spread evenly over a split, and of each sample
_CHUNK_BYTES = 1 << 24


def compare(
    calibration: Mapping[str, Array], tuning: Mapping[str, Array], names: Sequence[str]
) -> list[str]:
    """What calibration misses, as sentences.

    Args:
        calibration: arrays of that split, first axis the sample.
        tuning: arrays of that split.
        names: of the model's inputs.

    Raises:
        BadInputError: an input's calibration values are nothing like its tuning values.
    """
    found = []
    for name in names:
        if calibration[name].dtype.kind not in "fiub":
            continue
        distance = ks_distance(_spread(calibration[name]), _spread(tuning[name]))
        if distance > DISTANCE_MAX:
            raise BadInputError(
                f"calibration data: array {name!r} is nothing like the tuning data "
                f"(Kolmogorov-Smirnov distance {distance:.2f}, at most {DISTANCE_MAX:g})",
                hint="calibrate with samples as they come in the field: ranges of random or "
                "otherwise prepared data clip real ones",
            )
        low, high = _range(calibration[name])
        share = _outside(tuning[name], low, high)
        if share > OUTSIDE_MAX:
            found.append(
                f"{share:.0%} of the tuning samples leave the range of input {name!r} that "
                f"calibration saw, {low:g} to {high:g}: static variants clip them"
            )
    if SLICE in tuning:
        seen = set(np.unique(calibration[SLICE]).tolist()) if SLICE in calibration else set()
        missing = sorted(set(np.unique(tuning[SLICE]).tolist()) - seen)
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (", …" if missing[5:] else "")
            found.append(f"calibration holds no sample of slice {shown}")
    return found


def _spread(array: Array) -> Array:
    rows = array[:: max(1, len(array) // _ROWS)]
    flat = np.asarray(rows).reshape(len(rows), -1)
    picked = flat[:, :: max(1, flat.shape[1] // _VALUES)].ravel()
    return picked[np.isfinite(picked)] if picked.dtype.kind == "f" else picked


def _chunks(array: Array) -> Iterator[Array]:
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield np.asarray(array[start : start + step])
        npz.release({"": array})  # or a pass ends with all of it in memory


def _range(array: Array) -> tuple[float, float]:
    ends = [(float(np.nanmin(chunk)), float(np.nanmax(chunk))) for chunk in _chunks(array)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _outside(array: Array, low: float, high: float) -> float:
    margin = _MARGIN * (high - low)
    count = 0
    for chunk in _chunks(array):
        flat = chunk.reshape(len(chunk), -1)
        count += int(((flat < low - margin) | (flat > high + margin)).any(axis=1).sum())
    return count / len(array)
