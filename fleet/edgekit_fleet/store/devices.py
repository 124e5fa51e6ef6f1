"""Devices: joining, presence, reported snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, select, update

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.ids import shard_of
from edgekit.contracts.messages import Presence, Reported
from edgekit.contracts.topics import Address
from edgekit_fleet.errors import NotFoundError
from edgekit_fleet.store.schema import devices

HEARTBEATS_MISSED_MAX = 3.0  # a will can be lost with its broker; silence must count too


@dataclass(frozen=True)
class KnownDevice:
    """What ingest needs to know about a device before it writes."""

    id: int
    shard: int


def find(connection: Connection, tenant: str, names: Iterable[str]) -> dict[str, KnownDevice]:
    """Known devices among ``names``."""
    statement = select(devices.c.device, devices.c.id, devices.c.shard).where(
        devices.c.tenant == tenant, devices.c.device.in_(sorted(set(names)))
    )
    return {row.device: KnownDevice(row.id, row.shard) for row in connection.execute(statement)}


def join(connection: Connection, address: Address, now: float) -> KnownDevice:
    """Add a device under the shard it was addressed by.

    Raises:
        BadInputError: that is not the shard of this device.
    """
    expected = shard_of(address.device)
    if address.shard != expected:
        raise BadInputError(f"device {address.device}: shard {address.shard} is not its {expected}")
    result = connection.execute(
        devices.insert().values(
            tenant=address.tenant, device=address.device, shard=address.shard, joined=now
        )
    )
    (key,) = result.inserted_primary_key or (None,)
    assert key is not None, "an insert of one row returns its key"
    return KnownDevice(key, address.shard)


def seen(connection: Connection, device_id: int, at: float) -> None:
    """Move ``last_seen`` forward, never back."""
    connection.execute(
        update(devices)
        .where(devices.c.id == device_id, devices.c.last_seen < at)
        .values(last_seen=at)
    )


def apply_presence(connection: Connection, device_id: int, presence: Presence) -> bool:
    """Take birth or will. A will of a session that is not the newest is stale.

    Returns:
        Whether it was taken.
    """
    statement = update(devices).where(devices.c.id == device_id)
    if not presence.online:
        statement = statement.where((devices.c.sid == presence.sid) | devices.c.sid.is_(None))
    values = {"online": presence.online, "sid": presence.sid}
    return connection.execute(statement.values(**values)).rowcount > 0


def apply_reported(
    connection: Connection, device_id: int, raw: bytes, reported: Reported, now: float
) -> None:
    """Store a snapshot as received, with the fields that are searched by."""
    connection.execute(
        update(devices)
        .where(devices.c.id == device_id)
        .values(
            reported=raw,
            reported_at=now,
            gen_observed=reported.gen_observed,
            profile=codec.encode(reported.profile),
            labels=codec.encode(reported.profile.labels).decode(),
        )
    )


def is_online(row: Row[tuple[object, ...]], now: float, report_s: float) -> bool:
    """Presence says so *and* it was heard of lately."""
    return bool(row.online) and now - row.last_seen <= HEARTBEATS_MISSED_MAX * report_s + 5.0


def rows(connection: Connection, tenant: str) -> list[Row[tuple[object, ...]]]:
    """Every device of ``tenant``, by name."""
    statement = select(devices).where(devices.c.tenant == tenant).order_by(devices.c.device)
    return list(connection.execute(statement))


def row(connection: Connection, tenant: str, device: str) -> Row[tuple[object, ...]]:
    """One device.

    Raises:
        NotFoundError: unknown.
    """
    statement = select(devices).where(devices.c.tenant == tenant, devices.c.device == device)
    found = connection.execute(statement).first()
    if found is None:
        raise NotFoundError(
            f"device {device!r}: unknown", hint="`edgekit fleet devices` lists those that joined"
        )
    return found


def reported_of(row: Row[tuple[object, ...]]) -> Reported | None:
    """The newest snapshot of a device, decoded."""
    if row.reported is None:
        return None
    return codec.decode(Reported, row.reported, what=f"reported of {row.device}")
