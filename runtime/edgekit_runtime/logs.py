"""What ``edgekit-agent logs`` shows: the agent's own log and the audit records of the spool."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.frames import Lane
from edgekit.contracts.messages import DeviceEvent, Record, SlotEvent, Tombstone
from edgekit_runtime import ringlog
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.spool import Spool

FILE_BYTES_MAX = 64 * 1024 * 1024  # read at most; the configuration bounds what is written


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened."""

    at: float
    source: str  # "log" or "audit"
    kind: str  # a log level, or what the audit record is
    text: str


def read(config: AgentConfig, *, lines: int) -> list[Entry]:
    """The newest ``lines`` entries, oldest first.

    An audit record is gone once it was delivered and its segment removed: the manager has it then.
    """
    state, disk = config.device.state_dir, PosixDisk()
    found = [
        Entry(at=line.at, source="log", kind=line.level, text=f"{line.name}: {line.text}")
        for line in ringlog.read(disk, state, FILE_BYTES_MAX)
    ]
    spool = Spool.peek(disk, state / "spool", SystemClock())
    found += audited(spool.stored(Lane.AUDIT))
    return sorted(found, key=lambda entry: entry.at)[-lines:]


def audited(records: Iterator[Record]) -> Iterator[Entry]:
    """Audit records as entries."""
    for record in records:
        if isinstance(record, DeviceEvent):
            yield Entry(at=record.at, source="audit", kind=record.kind, text=record.detail)
        elif isinstance(record, SlotEvent):
            name = f"{record.model} {record.release} {digests.short(record.digest)}".rstrip()
            text = f"{name}: {record.reason}" if record.reason else name
            yield Entry(at=record.at, source="audit", kind=record.state.value, text=text)
        elif isinstance(record, Tombstone):
            text = (
                f"{record.records} records with {record.inferences} inferences dropped from lane "
                f"{record.lane}: {record.reason}"
            )
            yield Entry(at=record.at, source="audit", kind="tombstone", text=text)


def describe(entries: list[Entry]) -> str:
    """For people."""
    lines = (
        f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(entry.at))}  {entry.source:5}  "
        f"{entry.kind:12}  {entry.text}"
        for entry in entries
    )
    return "\n".join(lines) or "nothing was logged on this device yet"
