"""The four splits of a data set: deterministic, disjoint by sample content, duplicates together.

A sample's place depends on its own content hash only, so a sample stays where it is when the data
set grows (the golden set, a fixed number of samples, may change).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from edgekit.contracts.errors import BadInputError
from edgekit.registry.dataset import Dataset
from edgekit.registry.model import Split

CALIBRATION_SHARE = 0.2
TUNING_SHARE = 0.2
GOLDEN_MAX = 32


def _position(sample: bytes) -> float:
    return int.from_bytes(sample[:8], "big") / 2.0**64


def _golden(hashes: list[bytes]) -> frozenset[bytes]:
    # Other bytes than `_position` reads, so that golden samples are spread over all positions.
    distinct = sorted(set(hashes), key=lambda sample: sample[8:])
    return frozenset(distinct[: min(GOLDEN_MAX, max(1, len(distinct) // 10))])


def split(data: Dataset) -> tuple[dict[Split, Dataset], str]:
    """Cut one data set into four; returns them and the sentence that says how.

    Raises:
        BadInputError: too few distinct samples.
    """
    hashes = data.hashes()
    golden = _golden(hashes)
    rows: dict[Split, list[int]] = {kind: [] for kind in Split}
    for index, sample in enumerate(hashes):
        if sample in golden:
            rows[Split.GOLDEN].append(index)
        elif _position(sample) < CALIBRATION_SHARE:
            rows[Split.CALIBRATION].append(index)
        elif _position(sample) < CALIBRATION_SHARE + TUNING_SHARE:
            rows[Split.TUNING].append(index)
        else:
            rows[Split.EVALUATION].append(index)
    # Duplicates of a golden sample add nothing to a replay.
    first = {hashes[index]: index for index in reversed(rows[Split.GOLDEN])}
    rows[Split.GOLDEN] = sorted(first.values())
    if any(len(chosen) < 2 for kind, chosen in rows.items() if kind is not Split.GOLDEN):
        raise BadInputError(
            f"{data.what}: {len(set(hashes))} distinct samples are too few to split in four",
            hint="give more samples, or the splits themselves (--calibration, --evaluation…)",
        )
    parts = {kind: data.take(np.asarray(chosen, dtype=np.intp)) for kind, chosen in rows.items()}
    counts = ", ".join(f"{len(rows[kind])} {kind.value}" for kind in Split)
    return parts, f"the data is split by sample content: {counts}"


def complete(given: Mapping[Split, Dataset]) -> tuple[dict[Split, Dataset], list[str]]:
    """Derive the splits that were not given.

    Raises:
        BadInputError: calibration or evaluation is missing, or too small to share.
    """
    parts, notes = dict(given), []
    for needed in (Split.CALIBRATION, Split.EVALUATION):
        if needed not in parts:
            raise BadInputError(
                f"no {needed.value} data", hint=f"give --{needed.value}, or one set with --data"
            )
    if Split.TUNING not in parts:
        # The evaluation split is for the final gate only, so tuning comes out of calibration.
        whole = parts[Split.CALIBRATION]
        first = np.asarray([_position(sample) < 0.5 for sample in whole.hashes()])
        parts[Split.CALIBRATION] = whole.take(np.flatnonzero(first))
        parts[Split.TUNING] = whole.take(np.flatnonzero(~first))
        _require_samples(parts, whole)
        notes.append("tuning data is half of the calibration data, by sample content")
    if Split.GOLDEN not in parts:
        whole = parts[Split.TUNING]
        hashes = whole.hashes()
        golden = _golden(hashes)
        inside = np.asarray([sample in golden for sample in hashes])
        _, firsts = np.unique(np.asarray(hashes), return_index=True)
        parts[Split.GOLDEN] = whole.take(np.sort(np.intersect1d(np.flatnonzero(inside), firsts)))
        parts[Split.TUNING] = whole.take(np.flatnonzero(~inside))
        _require_samples(parts, whole)
        notes.append(f"golden data is {parts[Split.GOLDEN].n} samples of the tuning data")
    return parts, notes


def _require_samples(parts: Mapping[Split, Dataset], whole: Dataset) -> None:
    if any(not part.arrays or part.n == 0 for part in parts.values()):
        raise BadInputError(f"{whole.what}: too few samples to share", hint="give more samples")


def check_disjoint(parts: Mapping[Split, Dataset]) -> None:
    """Refuse splits that share samples: a choice made on test data measures nothing.

    Raises:
        BadInputError: says how many samples and which splits.
    """
    seen = {kind: set(part.hashes()) for kind, part in parts.items()}
    for one, other in combinations(Split, 2):
        shared = len(seen[one] & seen[other])
        if shared:
            raise BadInputError(
                f"{one.value} and {other.value} data share {shared} samples",
                hint="remove them from one of the two, or give one set with --data",
            )
