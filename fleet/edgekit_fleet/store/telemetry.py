"""Telemetry: which frames were seen, and what their records say.

Everything here runs inside the caller's transaction: a frame counts as seen exactly when what it
says is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import Connection, func, select, update

from edgekit.contracts import codec
from edgekit.contracts.frames import FrameHeader
from edgekit.contracts.messages import DeviceEvent, Record, SlotEvent, Tombstone, Window
from edgekit.stats.intervals import IntervalSet
from edgekit_fleet.store import shadows
from edgekit_fleet.store.engine import upsert
from edgekit_fleet.store.schema import counters, devices, events, frames_seen, tombstones, windows

CLASS_PROBE = "class"
CONFIDENCE_SUM = "confidence"

# One device's numbering: (device_id, epoch, boot, lane).
Stream = tuple[int, int, int, int]


class FramesSeen:
    """The numbers of frames that were counted, read and written once per transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._streams: dict[Stream, IntervalSet] = {}
        self._changed: set[Stream] = set()

    def _intervals(self, stream: Stream) -> IntervalSet:
        if stream not in self._streams:
            device_id, epoch, boot, lane = stream
            text = self._connection.execute(
                select(frames_seen.c.intervals).where(
                    frames_seen.c.device_id == device_id,
                    frames_seen.c.epoch == epoch,
                    frames_seen.c.boot == boot,
                    frames_seen.c.lane == lane,
                )
            ).scalar()
            pairs = codec.decode(list[tuple[int, int]], (text or "[]").encode(), what="frames seen")
            self._streams[stream] = IntervalSet(pairs)
        return self._streams[stream]

    def claim(self, stream: Stream, seq: int) -> bool:
        """Mark a frame as seen; False when it was seen before."""
        intervals = self._intervals(stream)
        if seq in intervals:
            return False
        intervals.add(seq)
        self._changed.add(stream)
        return True

    def covering(self, stream: Stream, numbers: Iterable[int]) -> list[tuple[int, int]]:
        """The intervals of seen frames that hold any of ``numbers``: what an ack can say.

        Whole intervals, not just the numbers: that repeats earlier acks which may have been lost.
        """
        wanted = sorted(set(numbers))
        return [
            (first, last)
            for first, last in self._intervals(stream)
            if any(first <= number <= last for number in wanted)
        ]

    def flush(self) -> None:
        """Write what changed."""
        keys = ("device_id", "epoch", "boot", "lane")
        rows = [
            {
                **dict(zip(keys, stream, strict=True)),
                "intervals": codec.encode(self._streams[stream].pairs).decode(),
            }
            for stream in sorted(self._changed)
        ]
        upsert(self._connection, frames_seen, rows, keys=keys, update=("intervals",))
        self._changed.clear()


def add_record(
    connection: Connection, device_id: int, header: FrameHeader, record: Record, now: float
) -> bool:
    """Store one record of the frame ``header``; False when it was stored before.

    (That happens to a window that a device drained twice.)
    """
    if isinstance(record, Window):
        return _add_window(connection, device_id, header, record, now)
    if isinstance(record, Tombstone):
        _add_tombstone(connection, device_id, header, record, now)
    elif isinstance(record, SlotEvent):
        values = msgspec.structs.asdict(record)
        values["state"], values["detail"] = record.state.value, values.pop("reason")
        values |= {"device_id": device_id, "kind": "slot", "received_at": now}
        connection.execute(events.insert().values(**values))
    else:
        add_event(connection, device_id, record, now)
    return True


def add_event(connection: Connection, device_id: int, record: DeviceEvent, now: float) -> None:
    """Store an event that concerns the device as a whole."""
    connection.execute(
        events.insert().values(
            device_id=device_id,
            kind=record.kind[:64],
            detail=record.detail,
            at=record.at,
            received_at=now,
        )
    )


def _add_tombstone(
    connection: Connection, device_id: int, header: FrameHeader, record: Tombstone, now: float
) -> None:
    """Store what a device had to drop, less what had arrived here before.

    A device may evict a frame that is on its way: sent, counted here, its ack not yet back.
    """
    arrived = connection.execute(
        select(func.coalesce(func.sum(windows.c.n), 0)).where(
            windows.c.device_id == device_id,
            windows.c.epoch == header.epoch,
            windows.c.boot == record.boot,
            windows.c.lane == record.lane,
            windows.c.seq.between(record.first, record.last),
        )
    ).scalar_one()
    values = msgspec.structs.asdict(record) | {
        "device_id": device_id,
        "epoch": header.epoch,
        "inferences": max(0, record.inferences - int(arrived)),
        "received_at": now,
    }
    connection.execute(tombstones.insert().values(**values))


def _add_window(
    connection: Connection, device_id: int, header: FrameHeader, window: Window, now: float
) -> bool:
    row = {
        name: getattr(window, name)
        for name in (
            *("model", "digest", "release", "rollout", "wave", "start", "end", "n", "errors"),
            *("nan", "violations", "labelled", "correct", "edges_digest", "first", "last"),
        )
    }
    row |= {
        "device_id": device_id,
        "confidence_sum": window.sums.get(CONFIDENCE_SUM, 0.0),
        "classes": codec.encode(window.probes.get(CLASS_PROBE, ())).decode(),
        "body": codec.encode(window),
        "received_at": now,
        "epoch": header.epoch,
        "boot": header.boot,
        "lane": header.lane,
        "seq": header.seq,
        "region": window.region if window.first < window.last else None,
    }
    keys = ("device_id", "region", "first", "last")
    new = upsert(connection, windows, [row], keys=keys) > 0
    if new:
        shadows.add(connection, device_id, window)
    if new and window.n:
        # It overtook, or was overtaken by, the tombstone of its own frame: it is here after all.
        connection.execute(
            update(tombstones)
            .where(
                tombstones.c.device_id == device_id,
                tombstones.c.epoch == header.epoch,
                tombstones.c.boot == header.boot,
                tombstones.c.lane == header.lane,
                tombstones.c.first <= header.seq,
                tombstones.c.last >= header.seq,
            )
            .values(inferences=tombstones.c.inferences - window.n)
        )
    return new


def count(connection: Connection, amounts: Mapping[str, int]) -> None:
    """Add ``amounts`` to the counters of these names."""
    for name, amount in sorted(amounts.items()):
        if amount:
            old = connection.execute(
                select(counters.c.value).where(counters.c.name == name)
            ).scalar()
            row = {"name": name, "value": (old or 0) + amount}
            upsert(connection, counters, [row], keys=("name",), update=("value",))


def counter_values(connection: Connection) -> dict[str, int]:
    """All counters."""
    return {row.name: row.value for row in connection.execute(select(counters))}


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Inferences counted at the manager for one device, release and digest."""

    device: str
    model: str
    release: str
    digest: str
    n: int
    errors: int
    nan: int
    violations: int
    labelled: int
    correct: int


_SUMS = ("n", "errors", "nan", "violations", "labelled", "correct")


def counted(connection: Connection, tenant: str) -> list[Counted]:
    """Sums of every window, by device, release and digest."""
    by = (devices.c.device, windows.c.model, windows.c.release, windows.c.digest)
    statement = (
        select(*by, *(func.sum(windows.c[name]).label(name) for name in _SUMS))
        .join(devices, devices.c.id == windows.c.device_id)
        .where(devices.c.tenant == tenant)
        .group_by(*by)
        .order_by(*by)
    )
    return [
        Counted(
            device=row.device,
            model=row.model,
            release=row.release,
            digest=row.digest,
            **{name: int(getattr(row, name)) for name in _SUMS},
        )
        for row in connection.execute(statement)
    ]


def evicted(connection: Connection, tenant: str) -> dict[str, int]:
    """Inferences that devices say they had to drop, by device."""
    statement = (
        select(devices.c.device, func.sum(tombstones.c.inferences))
        .join(devices, devices.c.id == tombstones.c.device_id)
        .where(devices.c.tenant == tenant)
        .group_by(devices.c.device)
    )
    return {device: int(total) for device, total in connection.execute(statement)}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the event list."""

    device: str
    kind: str
    model: str
    digest: str
    release: str
    rollout: str
    state: str
    detail: str
    at: float
    received_at: float


def recent_events(
    connection: Connection, tenant: str, *, device: str | None, limit: int
) -> list[Event]:
    """The newest events, newest first."""
    statement = (
        select(events, devices.c.device)
        .join(devices, devices.c.id == events.c.device_id)
        .where(devices.c.tenant == tenant)
        .order_by(events.c.id.desc())
        .limit(limit)
    )
    if device is not None:
        statement = statement.where(devices.c.device == device)
    names = Event.__struct_fields__
    return [
        Event(**{name: getattr(row, name) for name in names})
        for row in connection.execute(statement)
    ]


class EvidenceSums(msgspec.Struct, kw_only=True):
    """Sums over windows of one device, on one side of a comparison."""

    n: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0
    confidence_sum: float = 0.0
    classes: list[int] = []

    def add_classes(self, more: Sequence[int]) -> None:
        """Add class counts; lists may differ in length (trailing zeroes are not stored)."""
        self.classes += [0] * (len(more) - len(self.classes))
        for index, number in enumerate(more):
            self.classes[index] += number


def evidence(
    connection: Connection, *, model: str, digests: Iterable[str], since: float
) -> tuple[dict[int, EvidenceSums], dict[int, EvidenceSums]]:
    """Per device id: sums of windows of ``digests``, and of every other digest of ``model``."""
    chosen = frozenset(digests)
    statement = select(
        windows.c.device_id,
        windows.c.digest,
        windows.c.n,
        windows.c.errors,
        windows.c.labelled,
        windows.c.correct,
        windows.c.confidence_sum,
        windows.c.classes,
    ).where(windows.c.model == model, windows.c.start >= since)
    candidate: dict[int, EvidenceSums] = defaultdict(EvidenceSums)
    other: dict[int, EvidenceSums] = defaultdict(EvidenceSums)
    for row in connection.execute(statement):
        sums = (candidate if row.digest in chosen else other)[row.device_id]
        sums.n += row.n
        sums.errors += row.errors
        sums.labelled += row.labelled
        sums.correct += row.correct
        sums.confidence_sum += row.confidence_sum
        sums.add_classes(msgspec.json.decode(row.classes, type=list[int]))
    return candidate, other
