"""SCHED_IDLE for workers that nobody waits for: only where it can be left again."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgekit_runtime import quiet

AS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"),
    reason="root may leave the policy, and become somebody who may not",
)


def _in_child(work) -> int:
    """Exit code of ``work``, in a process of its own: policies are not to leak into the tests."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _policies() -> set[int]:
    return {os.sched_getscheduler(int(t.name)) for t in Path("/proc/self/task").iterdir()}


def _hushed() -> bool:
    quiet.hush(os.getpid())
    return os.sched_getscheduler(0) == os.SCHED_IDLE


@AS_ROOT
def test_every_thread_leaves_the_policy_at_once():
    def work() -> int:
        if not quiet.possible() or not _hushed():
            return 1
        quiet.begin()
        more = threading.Thread(target=threading.Event().wait, args=(30,), daemon=True)
        more.start()
        if _policies() != {os.SCHED_IDLE}:
            return 2
        quiet.end()
        return 0 if _policies() == {os.SCHED_OTHER} else 3

    assert _in_child(work) == 0


@AS_ROOT
def test_an_update_goes_on_where_no_core_is_ever_idle(monkeypatch):
    monkeypatch.setattr(quiet, "PATIENCE_S", 0.05)

    def work() -> int:
        if not _hushed():
            return 1
        quiet.begin()
        done = threading.Event()
        for _ in range(200):
            if _policies() == {os.SCHED_OTHER}:
                return 0
            done.wait(0.02)
        return 2

    assert _in_child(work) == 0


@AS_ROOT
def test_nothing_is_begun_that_could_not_be_ended():
    def work() -> int:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        return 0 if not quiet.possible.__wrapped__() else 1

    assert _in_child(work) == 0


def test_nothing_happens_to_a_process_that_did_not_begin():
    def work() -> int:
        before = _policies()
        quiet.end()
        return 0 if _policies() == before else 1

    assert _in_child(work) == 0
