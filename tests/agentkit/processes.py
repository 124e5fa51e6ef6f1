"""Worker processes of an agent, as the kernel tells them."""

from __future__ import annotations

from pathlib import Path


def workers(agent) -> list[int]:
    """Pids, ascending."""
    children = Path(f"/proc/{agent.process.pid}/task")
    found = [int(pid) for task in children.iterdir() for pid in _children(task)]
    return sorted(pid for pid in found if b"edgekit_runtime.worker" in command(pid))


def command(pid: int) -> bytes:
    """Empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []  # the thread has ended
