"""Looking often without fooling oneself: how much error probability each look may spend.

A gate that is tested after every telemetry window at a fixed 5 % would stop a perfect release
sooner or later. `spend` gives look k (1, 2, ...) the share 6 / (pi^2 k^2) of the total; the shares
sum to one, so by the union bound the whole sequence of looks errs with probability at most alpha,
whenever and however often one stops. It needs no planned number of looks and no model of the data;
the price is a wider interval than group-sequential designs with a known maximum.
"""

from __future__ import annotations

import math


def spend(alpha: float, look: int) -> float:
    """Error probability for the ``look``-th look (from 1)."""
    if look < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(f"spend(alpha={alpha}, look={look}) is out of range")
    return alpha * 6.0 / (math.pi**2 * look**2)
