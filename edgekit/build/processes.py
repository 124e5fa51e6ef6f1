"""Processes of a build: each in its own address space, all of them within one bound on memory.

Quantizers and engines crash, hang and take what memory there is. The kernel holds each to its share
(RLIMIT_DATA, Linux 4.7 and newer): a step that needs more fails, says so, and the machine goes on.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.contracts.errors import ResourceError, UnavailableError

TIMEOUT_S = 3600.0  # an engine that hangs must not hang the build for ever
_SHARE = 0.8  # of the memory that is free when a build begins
_PEAK_MIN = 512 * 1024**2  # of a step that is not known yet: Python, numpy and ONNX Runtime
_NEAR = 0.5  # what was mapped and not touched yet is no peak, and counts against the bound
_ROOM = 1.5  # candidates of one model differ: room for one above the largest that was seen
# What is said by Python and numpy, the C++ library, ONNX Runtime's arena, OpenVINO and protobuf.
_MEMORY = re.compile(
    r"MemoryError|out of memory|bad[_ ]alloc|cannot allocate|unable to allocate"
    r"|failed to allocate memory|failed to serialize proto",
    re.IGNORECASE,
)
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


STARVED = "it needs more than its"
MEMORY_HINT = "raise --memory-budget, or use a larger machine or a smaller data set"


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    returncode: int
    stdout: bytes
    stderr: str
    memory_bytes: int  # that it might take
    peak_bytes: int  # taken at once by the largest process so far

    @property
    def starved(self) -> bool:
        """Whether it wanted more memory. No property of its input: nothing of it is cached."""
        if self.returncode < 0:
            # The kernel kills for memory; foreign code that does not expect an allocation to fail
            # ends with any signal. One that was far from its bound had another reason.
            near = self.peak_bytes > _NEAR * self.memory_bytes
            return near or self.returncode == -signal.SIGKILL or says_memory(self.stderr)
        return self.returncode != 0 and says_memory(self.stderr)

    @property
    def wanted(self) -> str:
        """What is said of one that `starved`."""
        return f"{STARVED} {self.memory_bytes / 1e9:.1f} GB of memory"


def says_memory(text: str) -> bool:
    """Whether an error's text is that of an allocation that failed."""
    return _MEMORY.search(text) is not None


def free_bytes() -> int:
    """Memory that a build may take: what the machine and its container have free."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
            found.append(max(0, int(limit) - used))
    except (OSError, ValueError, IndexError):
        pass  # another system, or no control group: what is known by then counts
    return min(found)


class Processes:
    """Runs our own modules. Thread-safe."""

    def __init__(self, memory_bytes: int | None = None) -> None:
        """All at once may take ``memory_bytes``; None: most of what is free now."""
        self.memory_bytes = memory_bytes or int(_SHARE * free_bytes())

    def at_once(self, wanted: int) -> int:
        """How many of ``wanted`` like steps fit side by side, on these cores and in memory."""
        # Calibration and the original come first: something is known of this model by then.
        each = int(_ROOM * max(_PEAK_MIN, _peak_bytes()))
        return max(1, min(wanted, len(os.sched_getaffinity(0)), self.memory_bytes // each))

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        stdin: Path | None = None,
        at_once: int = 1,
        bounded: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> Done:
        """Run ``command`` to its end.

        Args:
            command: program and arguments.
            environment: its variables; None passes on ours.
            stdin: a file that it reads; None: nothing.
            at_once: so many share the memory.
            bounded: whether the kernel holds it to its share.
            timeout_s: seconds that it may take.

        Raises:
            UnavailableError: it did not end in time.
            ResourceError: no process can be started.
        """
        share = self.memory_bytes // at_once
        try:
            with (
                (stdin or Path(os.devnull)).open("rb") as read,
                subprocess.Popen(
                    command,
                    stdin=read,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment,
                ) as process,
            ):
                if bounded:
                    _bound(process.pid, share)
                try:
                    out, err = process.communicate(timeout=timeout_s)
                except BaseException:
                    process.kill()
                    raise
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(
                f"{' '.join(command[:4])} did not end within {timeout_s:.0f} s",
                hint="try a smaller data set",
            ) from exc
        except OSError as exc:
            raise ResourceError(f"cannot start {command[0]}: {exc.strerror}") from exc
        text = err.decode(errors="replace")
        return Done(process.returncode, out, text, share, _peak_bytes())


def _peak_bytes() -> int:
    """Of the largest child that has ended; no less than what this process has resident itself."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _bound(pid: int, size: int) -> None:
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, hard))
    except ProcessLookupError:
        return  # it has ended already
