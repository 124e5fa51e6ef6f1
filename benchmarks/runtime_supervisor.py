"""What does the supervisor add, in memory and before the agent's first instruction?

Both start the same one-line agent, with the same Python: once by itself, once through the
supervisor. Runs alternate; medians.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Row, write

import edgekit_runtime.supervisor
from edgekit_runtime.supervisor.book import Book
from edgekit_runtime.supervisor.rules import fresh

ROUNDS = int(os.environ.get("EDGEKIT_BENCH_ROUNDS", "21"))
PROGRAM = Path(edgekit_runtime.supervisor.__file__).with_name("__main__.py")
BYTES_MAX = 8_000_000
ADDED_S_MAX = 0.030  # of which a bare Python start is most
_AGENT = "import os, time\nos.write(1, b'.')\ntime.sleep(600)\n"


def _pss_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def _timed(command: list[str | Path]) -> tuple[float, int]:
    """Seconds to the agent's first instruction, and the PSS of the process that was started."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        took = time.perf_counter() - begun
        size = _pss_bytes(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait()
    return took, size


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        state, digest = Path(name), "sha256:" + "0" * 64
        agent = state / "runtimes" / digest[7:] / "agent.py"
        agent.parent.mkdir(parents=True)
        agent.write_text(_AGENT)
        Book(name).save({**fresh(digest), "confirmed": True})
        ours: list[str | Path] = [sys.executable, "-I", "-S", PROGRAM, state, "run"]
        bare: list[str | Path] = [sys.executable, "-I", "-S", "-c", "import os; os.write(1, b'.')"]
        alone: list[str | Path] = [sys.executable, agent, "run"]
        runs = [(_timed(alone), _timed(ours), _start(bare)) for _ in range(ROUNDS)]
    alone_s, ours_s = (statistics.median(run[who][0] for run in runs) for who in (0, 1))
    python_s = statistics.median(run[2] for run in runs)
    size = statistics.median(run[1][1] for run in runs)
    rows = [
        Row(
            "one-line agent",
            "added before the agent's first instruction",
            (ours_s - alone_s) * 1e6,
            f"<= {ADDED_S_MAX * 1e3:.0f} ms",
            ours_s - alone_s <= ADDED_S_MAX,
            "a bare Python's start and end",
            python_s * 1e6,
            (ours_s - alone_s) / python_s,
            "supervised less unsupervised start",
        ),
        Row(
            "one-line agent",
            "PSS of the supervisor, MB (not us)",
            size / 1e6,
            f"<= {BYTES_MAX / 1e6:g} MB",
            size <= BYTES_MAX,
            note="the interpreter's own pages are shared with the agent's",
        ),
    ]
    write("runtime_supervisor", "Supervisor: memory and start", rows, __doc__ or "")


def _start(command: list[str | Path]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
