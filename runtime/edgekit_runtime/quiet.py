"""Workers that nobody waits for run when the cores are idle.

A candidate is started, loaded and tested on the cores that serve, and one that was replaced gives
back its memory there; what serves must not wait for either. Linux runs a thread under
``SCHED_IDLE`` when nothing else wants its core, and takes it off at once (sched(7)). A worker
leaves that policy when its model is loaded, or after `PATIENCE_S`: on a device that is never idle
an update goes on all the same. To leave it, a process needs ``RLIMIT_NICE`` of 20 or CAP_SYS_NICE;
without one of them nothing is started under it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path

PATIENCE_S = 20.0
_here = threading.Event()


@functools.cache
def possible() -> bool:
    """Whether this process, and those it starts, could leave the policy again.

    Policies belong to threads: one of ours tries.
    """
    returned: list[bool] = []

    def there_and_back() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            returned.append(True)

    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        thread = threading.Thread(target=there_and_back)
        thread.start()
        thread.join()
    return bool(returned)


def hush(pid: int) -> None:
    """Put a process that was just started under the policy."""
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def begin() -> None:
    """In such a process: be like everything else after `PATIENCE_S` at the latest."""
    _here.set()
    timer = threading.Timer(PATIENCE_S, end)
    timer.daemon = True
    timer.start()


def end() -> None:
    """Be like everything else from now on; nothing when `begin` was not called."""
    if _here.is_set():
        _here.clear()
        _turn_all(os.SCHED_OTHER)


def fade() -> None:
    """This process ends: freeing its memory can wait."""
    _turn_all(os.SCHED_IDLE)


def _turn_all(policy: int) -> None:
    for _ in range(2):  # again, for what a thread has started that was not turned yet
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
