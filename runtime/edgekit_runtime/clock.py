"""The real `Clock`."""

from __future__ import annotations

import ctypes
import time

from edgekit.contracts.messages import ClockQuality

_TIME_ERROR = 5  # adjtimex: the kernel's clock was never synchronised


class SystemClock:
    """`edgekit_runtime.ports.Clock` over the operating system."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)  # what this process has loaded already

    def wall(self) -> float:
        """See `Clock.wall`."""
        return time.time()

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def quality(self) -> ClockQuality:
        """What the kernel says about its clock; UNKNOWN where it does not say."""
        query = getattr(self._libc, "ntp_adjtime", None)
        if query is None:
            return ClockQuality.UNKNOWN
        buffer = ctypes.create_string_buffer(256)  # struct timex is 208 bytes; zero = read only
        state = int(query(buffer))
        return ClockQuality.SYNCED if 0 <= state < _TIME_ERROR else ClockQuality.UNKNOWN
