"""A small event loop over epoll: the agent's front and every worker run one, in one thread.

Without coroutines on purpose: a worker answers one request after the other, and neither the
memory nor the start of an agent has room for more.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable

Ready = Callable[[int], None]
READ = select.EPOLLIN
WRITE = select.EPOLLOUT
NOTHING = 0  # still told of errors and of the other side's end


class Loop:
    """Calls back what is ready. Only `post` may be called from other threads."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._bell, READ, self._rung)

    def watch(self, descriptor: int, events: int, ready: Ready) -> None:
        """Call ``ready`` with what happened to ``descriptor``."""
        self._poll.register(descriptor, events)
        self._ready[descriptor] = ready

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events."""
        self._poll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Watch it no more; to be called before it is closed or handed on."""
        if self._ready.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def post(self, call: Callable[[], None]) -> None:
        """Have ``call`` called by the loop's thread. Thread- and signal-safe."""
        self._posted.append(call)
        os.eventfd_write(self._bell, 1)

    def turn(self, timeout_s: float) -> None:
        """Wait for events, at most so long, and handle them."""
        for descriptor, events in self._poll.poll(timeout_s):
            ready = self._ready.get(descriptor)
            if ready is not None:  # else an earlier one of these events has forgotten it
                ready(events)

    def close(self) -> None:
        """Close what the loop itself holds."""
        self._poll.close()
        os.close(self._bell)

    def _rung(self, _: int) -> None:
        os.eventfd_read(self._bell)
        while self._posted:
            self._posted.popleft()()
