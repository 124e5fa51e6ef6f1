"""Checks of the machine itself."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import ClockQuality
from edgekit_runtime import readings
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.doctor.check import Check, fail, ok, warn
from edgekit_runtime.store import FREE_BYTES_MIN

PROBE = "doctor.probe"
BUILT_AFTER = 1704067200.0  # 2024-01-01: no correct clock is before this program
AVAILABLE_SHARE_MIN = 0.10
AVAILABLE_BYTES_MIN = 64 * 1024 * 1024  # a worker with a small model
STALLED_PERCENT_MAX = 20.0  # of the last ten seconds spent waiting for memory
HOT_C = 80.0  # boards of all makers slow down at 80 to 95 degrees
_MEMINFO = Path("/proc/meminfo")
_PRESSURE = Path("/proc/pressure/memory")


def state_folder(state: Path) -> Check:
    """Write, fsync and remove a file where the state lies."""
    name = "state folder"
    if not state.is_dir():
        return fail(name, f"{state} does not exist", f"create it: mkdir -p {state}")
    disk = PosixDisk()
    try:
        disk.replace(state / PROBE, b"probe\n")
        disk.unlink(state / PROBE)
    except EdgekitError as exc:
        cause = exc.__cause__
        code = cause.errno if isinstance(cause, OSError) else None
        if code == errno.EROFS:
            return fail(name, exc.message, f"mount the file system of {state} read-write")
        if code in (errno.ENOSPC, errno.EDQUOT):
            return fail(name, exc.message, "free space there, or move [device] state_dir")
        who = f"user {os.geteuid()}"
        return fail(name, exc.message, f"let {who} write there: chown -R {os.geteuid()} {state}")
    return ok(name, f"{state} can be written")


def space(state: Path) -> Check:
    """Room and inodes for telemetry and the next bundle."""
    name = "disk space"
    try:
        facts = os.statvfs(next(path for path in (state, *state.parents) if path.exists()))
    except OSError as exc:
        return fail(name, f"{state}: {exc.strerror}", "mount the file system of the state folder")
    free = facts.f_bavail * facts.f_frsize
    told = f"{free // 2**20} MiB free at {state}"
    if facts.f_files and not facts.f_favail:
        return fail(name, f"no inodes left at {state}", "remove small files from that file system")
    if free < FREE_BYTES_MIN:
        return fail(name, told, f"free at least {FREE_BYTES_MIN // 2**20} MiB there")
    if free < 4 * FREE_BYTES_MIN:
        return warn(name, told, "free space there before the next release is rolled out")
    return ok(name, told)


def clock() -> Check:
    """Is the time set, and who says so?"""
    name, now = "clock", time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now))
    if now < BUILT_AFTER:
        return fail(name, f"not set: it says {text}", "set it: timedatectl set-ntp true")
    if SystemClock().quality() is not ClockQuality.SYNCED:
        mend = "start a time service (timedatectl set-ntp true); inference does not need it"
        return warn(name, f"{text}, but the kernel's clock is not synchronised", mend)
    return ok(name, f"{text}, synchronised")


def memory(meminfo: Path = _MEMINFO, pressure: Path = _PRESSURE) -> Check:
    """Is there memory for one more worker, and does the system wait for memory?"""
    name = "memory"
    sizes = readings.meminfo(meminfo)
    if "MemAvailable" not in sizes:
        return warn(
            name, f"{meminfo} does not tell what is available", "use a Linux kernel >= 3.14"
        )
    available, total = sizes["MemAvailable"], sizes.get("MemTotal", 0)
    told = f"{available // 2**20} of {total // 2**20} MiB available"
    mend = "stop other programs, or set policy.worker_bytes_max so that a model cannot take it all"
    if available < AVAILABLE_BYTES_MIN:
        return fail(name, told, mend)
    stalled = _stalled(pressure)
    if stalled is not None and stalled > STALLED_PERCENT_MAX:
        return warn(name, f"{told}; programs wait for memory {stalled:.0f} % of the time", mend)
    if available < AVAILABLE_SHARE_MIN * total:
        return warn(name, told, mend)
    return ok(name, told)


def _stalled(path: Path) -> float | None:
    """Share of the last ten seconds in which some program waited for memory, in percent."""
    try:
        some = path.read_text(encoding="ascii", errors="replace").split("\n", 1)[0]
        return float(some.split("avg10=")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return None


def heat(root: Path = Path("/")) -> Check:
    """Is the device hot, or slowed down because it is?"""
    name = "temperature"
    degrees = readings.temperatures(root).values()
    throttled, why = readings.throttling(root)
    told = f"{max(degrees):.0f} degrees C" if degrees else "no sensor"
    mend = "cool it: heat sink, fan, shade; latency limits do not count while it is throttled"
    if throttled:
        return warn(name, f"{told}, throttled: {why}", mend)
    if degrees and max(degrees) >= HOT_C:
        return warn(name, told, mend)
    if throttled is None:
        return ok(name, f"{told}; whether it is throttled nobody tells")
    return ok(name, told)


def mounts(config: AgentConfig) -> Check:
    """What must be writable or executable although the root file system need not be."""
    name = "mounts"
    state, folder = config.device.state_dir, config.socket_path.parent
    if state.is_dir() and os.statvfs(state).f_flag & os.ST_NOEXEC:
        mend = f"mount the file system of {state} without noexec"
        return fail(name, f"{state} is mounted noexec: no agent runtime can start there", mend)
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not os.access(existing, os.W_OK):
        mend = "set [serve] socket to a folder the agent may write, such as below /run"
        return fail(name, f"the socket's folder {folder} cannot be written", mend)
    try:
        tempfile.TemporaryFile().close()
    except OSError as exc:
        mend = "mount a small tmpfs on /tmp (systemd: PrivateTmp=yes)"
        return warn(name, f"no temporary folder can be written: {exc.strerror}", mend)
    return ok(name, "state, socket and temporary folder are usable")
