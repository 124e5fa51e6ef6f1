"""Shared by all benchmarks: machine facts, rows, result files (DESIGN 10).

`benchmarks/results/QUESTION.json` holds machine, commit and rows; the `.md` beside it is for
people.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One figure. ``met`` is False when it could not be measured; ``note`` then says why."""

    case: str
    metric: str
    us: float | None
    goal: str
    met: bool
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    note: str = ""


def machine() -> dict[str, object]:
    """Facts that figures depend on."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that is measured; marked when the tree has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def write(question: str, title: str, rows: list[Row], intro: str = "") -> bool:
    """Write both result files and print the table; returns whether every goal was met."""
    RESULTS.mkdir(exist_ok=True)
    facts = {"machine": machine(), "commit": commit(), "rows": [asdict(row) for row in rows]}
    (RESULTS / f"{question}.json").write_text(json.dumps(facts, indent=2) + "\n")
    header = "| case | metric | us | peer | peer value | ratio | goal | met | note |"
    lines = [f"# {title}", "", intro, "", header, "|" + "---|" * 9]
    lines += [
        f"| {row.case} | {row.metric} | {_figure(row.us)} | {row.peer or '-'} "
        f"| {_figure(row.peer_value)} | {_figure(row.ratio)} | {row.goal} "
        f"| {'yes' if row.met else 'NO'} | {row.note} |"
        for row in rows
    ]
    text = "\n".join(lines) + f"\n\nMachine: {json.dumps(facts['machine'])}, {facts['commit']}.\n"
    (RESULTS / f"{question}.md").write_text(text)
    print(text)
    return all(row.met for row in rows)
