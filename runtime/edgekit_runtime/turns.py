"""Quick turns between two threads, while one of them imports and the other one loads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

TURN_S = 1e-4  # with Python's own 5 ms, who needs the interpreter for a moment mostly waits


@contextmanager
def quick() -> Iterator[None]:
    """Hand the interpreter over every `TURN_S`, meanwhile."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
