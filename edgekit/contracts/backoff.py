"""Retry delays: capped exponential with full jitter.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Full jitter spreads
a fleet that lost its broker at one instant; without it every device comes back at once.
"""

from __future__ import annotations

from random import Random

import msgspec


class Backoff(msgspec.Struct):
    """Delay before attempt n: uniform in (0, min(cap_s, base_s * 2**n)]."""

    base_s: float = 0.5
    cap_s: float = 60.0
    rng: Random | None = None
    attempt: int = 0

    def next_delay_s(self) -> float:
        """The next delay in seconds; counts the attempt."""
        rng = self.rng or Random()
        # The exponent is bounded: 2.0**1100 would overflow after a long outage.
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(self.attempt, 32))
        self.attempt += 1
        return ceiling * (1.0 - rng.random())

    def reset(self) -> None:
        """Call after a success."""
        self.attempt = 0
