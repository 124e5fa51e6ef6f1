"""A real supervisor over tiny runtimes: trial, roll-back, back-off, signals, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from agentkit import runtimes
from agentkit.runtimes import SupervisorProcess, lay_out, prove

pytestmark = pytest.mark.integration


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    return folder


@pytest.fixture
def supervise(state):
    started = []

    def start(**options):
        started.append(SupervisorProcess(state, **options).start())
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_what_the_agent_says_is_passed_on_and_a_stop_is_orderly(state, supervise):
    digest = lay_out(state, "one", runtimes.GOOD)
    supervisor = supervise()
    for text in (b"READY=1", b"STATUS=good", b"WATCHDOG=1"):
        supervisor.wait(lambda text=text: supervisor.heard(text), what=text)
    assert not supervisor.heard(b"EDGEKIT=reported")
    pid = supervisor.agent_pid()
    assert supervisor.record()["active"] == digest
    assert supervisor.stop() == 0
    assert not runtimes.is_alive(pid)
    assert not (state / "supervisor.sock").exists()


def test_an_agent_that_asks_is_succeeded_and_the_new_one_confirmed(state, supervise):
    new = lay_out(state, "new", runtimes.GOOD)
    old = prove(state, lay_out(state, "old", runtimes.switches(new, confirm_s=0.2)))
    supervisor = supervise()
    supervisor.wait(lambda: supervisor.record() and supervisor.record()["active"] == new, "switch")
    supervisor.wait(lambda: supervisor.record()["confirmed"], "confirmed")
    assert supervisor.record()["fallback"] == old
    assert supervisor.ran() == ["old", "new"]
    assert supervisor.ran(2) == ["alone", "trial"]
    assert not (state / "runtime.request").exists()


@pytest.mark.parametrize(
    ("body", "reason", "starts"),
    [
        (runtimes.DOES_NOT_START, "No module named 'no_such_engine'", 2),
        (runtimes.NEVER_REPORTS, "did not report within 0.5 s", 1),
        (runtimes.CRASHES, "SIGSEGV", 2),
        (runtimes.HANGS, "no sign of life for 1 s", 2),
    ],
)
def test_a_broken_runtime_gives_way_to_the_one_before(state, supervise, body, reason, starts):
    bad = lay_out(state, "bad", body)
    old = prove(state, lay_out(state, "old", runtimes.switches(bad, report_s=0.5, confirm_s=60)))
    supervisor = supervise(watchdog_s=1.0)
    supervisor.wait(lambda: bad in (supervisor.record() or {"failed": ()})["failed"], "failed")
    supervisor.wait(lambda: supervisor.ran()[-1:] == ["old"], "old runs")
    record = supervisor.record()
    assert (record["active"], record["fallback"], record["confirmed"]) == (old, "", True)
    assert reason in record["failed"][bad]["reason"]
    assert supervisor.ran() == ["old"] + starts * ["bad"] + ["old"]
    pid = supervisor.agent_pid()
    assert runtimes.is_alive(pid)
    assert supervisor.stop() == 0


def test_tries_are_spent_across_power_cuts_and_given_back_by_orderly_stops(state, supervise):
    new = lay_out(state, "new", runtimes.GOOD)
    prove(state, lay_out(state, "old", runtimes.switches(new, confirm_s=3600)))
    supervisor = supervise()
    supervisor.wait(lambda: "new" in supervisor.ran(), "on trial")
    assert supervisor.record()["tries"] == 1
    assert supervisor.stop() == 0
    assert supervisor.record()["tries"] == 2
    for left in (1, 0):
        supervisor = supervise()
        count = len(supervisor.ran())
        supervisor.wait(lambda c=count, s=supervisor: len(s.ran()) > c, "new runs")
        assert supervisor.record()["tries"] == left
        supervisor.process.kill()
        runtimes.wait_gone(supervisor.agent_pid())
        supervisor.close()
    supervisor = supervise()
    supervisor.wait(lambda: supervisor.ran()[-1] == "old", "rolled back")
    assert "every try was spent" in supervisor.record()["failed"][new]["reason"]


def test_a_killed_supervisor_takes_even_a_hanging_agent_with_it(state, supervise):
    lay_out(state, "hangs", runtimes.HANGS)
    supervisor = supervise()
    supervisor.wait(supervisor.ran, "runs")
    supervisor.process.kill()
    runtimes.wait_gone(supervisor.agent_pid())


def test_a_confirmed_runtime_that_keeps_crashing_gives_way_to_its_fallback(state, supervise):
    new = lay_out(state, "new", runtimes.GOOD)
    old = prove(state, lay_out(state, "old", runtimes.switches(new, confirm_s=0.1)))
    supervisor = supervise()
    supervisor.wait(lambda: (supervisor.record() or {}).get("fallback") == old, "switch")
    supervisor.wait(lambda: supervisor.record()["confirmed"], "confirmed")
    killed = set()

    def shoot():
        pid = supervisor.agent_pid()
        if pid not in killed and supervisor.ran()[-1] == "new" and runtimes.is_alive(pid):
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return supervisor.record()["active"] == old

    supervisor.wait(shoot, "back to the old one")
    assert "ended 5 times within ten minutes" in supervisor.record()["failed"][new]["reason"]


def test_an_unreadable_record_is_rebuilt_from_what_lies_there(state, supervise):
    lay_out(state, "old", runtimes.GOOD)
    os.utime(state / "runtimes" / lay_out(state, "new", runtimes.GOOD)[7:], (2e9, 2e9))
    for copy in "ab":
        (state / f"runtime.{copy}").write_bytes(b"\0" * 100)
    supervisor = supervise()
    supervisor.wait(lambda: supervisor.ran() == ["new"], "runs")
    assert "rebuilt" in supervisor.record()["note"]


def test_bad_requests_are_dropped(state, supervise):
    digest = lay_out(state, "one", runtimes.GOOD)
    for text in ("{", "[]", '{"id": "x", "digest": "sha256:../../etc", "tries": 1}', '{"id": 1}'):
        (state / "runtime.request").write_text(text)
        supervisor = supervise()
        supervisor.wait(lambda: not (state / "runtime.request").exists(), "dropped")
        assert supervisor.record()["active"] == digest
        assert supervisor.stop() == 0


def test_nothing_to_start_wrong_use_and_a_second_one(state, supervise):
    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-I", "-S", runtimes.PROGRAM, *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("error: ")
        assert "hint: " in done.stderr
        return done.returncode

    assert run() == 2
    assert run(state / "none", "run") == 2
    assert run(state, "run") == 5
    lay_out(state, "one", runtimes.GOOD)
    supervisor = supervise()
    supervisor.wait(supervisor.ran, "runs")
    assert run(state, "run") == 5


def test_a_state_folder_too_deep_for_a_socket_is_said(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-S", runtimes.PROGRAM, deep, "run"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "hint: use a state folder with a shorter path" in done.stderr
    assert list(deep.iterdir()) == []
