"""The area under the ROC curve as a score per sample, for a metric of one's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def area(outputs: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> Scores:
    """Scores whose mean is the area, and whose spread is what is known about it.

    Each sample's share of the other kind that it is ordered rightly with has the area for its mean,
    over either kind alone. Weighted by how rare its kind is, the variance of the mean over all
    samples is DeLong's for the area (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988): a few
    anomalous samples do not hide among many normal ones.
    """
    scores, positive = np.asarray(outputs, np.float64).reshape(len(outputs)), truth.astype(bool)
    scores = np.where(np.isfinite(scores), scores, -np.inf)  # no answer raises no alarm
    found = np.empty(len(scores))
    for kind, sign in ((positive, 1.0), (~positive, -1.0)):
        mine, others = sign * scores[kind], np.sort(sign * scores[~kind])
        below = np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")
        shares = below / (2.0 * len(others))
        found[kind] = shares.mean() + (shares - shares.mean()) * len(scores) / kind.sum()
    return found
