"""Worker processes of an agent, as the kernel tells them."""

from __future__ import annotations

from pathlib import Path

from edgekit_runtime.launch import WORKER_NAME


def workers(agent) -> list[int]:
    """Pids, ascending."""
    children = Path(f"/proc/{agent.process.pid}/task")
    found = [int(pid) for task in children.iterdir() for pid in _children(task)]
    return sorted(pid for pid in found if is_worker(pid))


def is_worker(pid: int) -> bool:
    """Whether there is such a process, and it is a worker."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == WORKER_NAME
    except OSError:
        return False


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []  # the thread has ended
