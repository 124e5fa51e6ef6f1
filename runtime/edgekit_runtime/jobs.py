"""One background thread for slow steps; results are taken up by the control thread."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from edgekit.contracts.errors import BugError, EdgekitError, ResourceError


class Done(msgspec.Struct, frozen=True):
    """The end of a job: its value or the error it ended in."""

    value: Any
    error: EdgekitError | None


class JobRunner:
    """At most one job at a time. `start` and `take` belong to one thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._finish: Callable[[Done], None] | None = None
        self._done: Done | None = None

    @property
    def busy(self) -> bool:
        """Whether a job runs or its result was not taken yet."""
        return self._finish is not None

    def start(self, name: str, work: Callable[[], Any], finish: Callable[[Done], None]) -> None:
        """Run ``work`` in the background; ``finish`` is called from `take`."""
        if self._finish is not None:
            raise BugError(f"job {name} started while another runs")
        self._finish = finish
        threading.Thread(target=self._run, args=(work,), name=name, daemon=True).start()

    def take(self) -> bool:
        """Hand over a finished job; whether there was one."""
        with self._lock:
            done, self._done = self._done, None
        if done is None or self._finish is None:
            return False
        finish, self._finish = self._finish, None
        finish(done)
        return True

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            done = Done(work(), None)
        except EdgekitError as exc:
            done = Done(None, exc)
        except MemoryError:
            done = Done(None, ResourceError("out of memory"))
        except Exception as exc:  # noqa: BLE001 - a bug here must not stop the device's deployments
            traceback.print_exc()
            done = Done(None, BugError(f"unexpected {type(exc).__name__}: {exc}"))
        with self._lock:
            self._done = done
        self._wake()
