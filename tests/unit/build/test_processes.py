"""Processes of a build within their memory: what starves is told from what crashes."""

import signal
import sys

import pytest

from edgekit.build import processes
from edgekit.build.processes import Done, Processes
from edgekit.contracts.errors import ResourceError

GIB = 1024**3
HOG = "import sys; held = bytearray(int(sys.argv[1])); print(len(held))"


def test_a_process_keeps_to_its_share_of_the_memory():
    shared = Processes(GIB)
    fits = shared.run([sys.executable, "-c", HOG, str(600 * 1024**2)])
    assert (fits.returncode, fits.starved) == (0, False)
    hungry = shared.run([sys.executable, "-c", HOG, str(600 * 1024**2)], at_once=2)
    assert hungry.starved
    assert hungry.wanted == "it needs more than its 0.5 GB of memory"
    free = shared.run([sys.executable, "-c", HOG, str(600 * 1024**2)], at_once=2, bounded=False)
    assert free.returncode == 0


@pytest.mark.parametrize(
    ("code", "stderr", "peak", "starved"),
    [
        (0, "std::bad_alloc, and went on", GIB, False),
        (1, "RuntimeError: std::bad_alloc", 0, True),
        (1, "numpy: Unable to allocate 3.2 GiB for an array", 0, True),
        (1, "ValueError: shapes", GIB, False),
        (-signal.SIGKILL, "", 0, True),
        (-signal.SIGSEGV, "", GIB // 4, False),  # a crash of its own
        (-signal.SIGSEGV, "", 3 * GIB // 4, True),  # foreign code whose allocation failed
        (-signal.SIGABRT, "terminate called after throwing 'std::bad_alloc'", 0, True),
    ],
)
def test_starving_is_told_from_crashing(code, stderr, peak, starved):
    assert Done(code, b"", stderr, GIB, peak).starved is starved


def test_as_many_run_side_by_side_as_cores_and_memory_hold(monkeypatch):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(processes, "_peak_bytes", lambda: 2 * GIB)
    shared = Processes(10 * GIB)
    assert shared.at_once(100) == 3  # with room for one half as large again
    assert shared.at_once(2) == 2
    assert Processes(GIB).at_once(100) == 1
    assert Processes(1000 * GIB).at_once(100) == 8
    assert shared.at_once(0) == 1


def test_a_container_has_what_its_control_group_leaves(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "_CGROUP", tmp_path)
    machine = processes.free_bytes()
    assert machine > 0
    (tmp_path / "memory.max").write_text("max\n")
    assert processes.free_bytes() == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert processes.free_bytes() == 2000000


def test_a_program_that_is_not_there_is_a_resource_error():
    with pytest.raises(ResourceError, match="cannot start /nonexistent"):
        Processes(GIB).run(["/nonexistent"])
