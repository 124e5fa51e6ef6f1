"""Twins: the desired document of each device, and whether it was handed to the broker.

The outbox is a column: ``published_gen < gen`` means that a message is owed. It is set in the same
transaction as whatever decided the change, so a crash between decision and publication loses
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, select, update

from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BugError
from edgekit.contracts.limits import DESIRED_BYTES_MAX
from edgekit.contracts.messages import Deployment, Desired, DeviceConfig
from edgekit.contracts.topics import Address
from edgekit_fleet.store.engine import upsert
from edgekit_fleet.store.schema import devices, twins


@dataclass(frozen=True)
class Outgoing:
    """One desired document to publish."""

    device_id: int
    address: Address
    gen: int
    payload: bytes


def document(payload: bytes, what: str) -> Desired:
    """The desired document inside a stored envelope."""
    envelope = codec.open_envelope(payload, what=what, bytes_max=DESIRED_BYTES_MAX)
    return codec.decode(Desired, envelope.payload, what=what)


def get(connection: Connection, device_id: int) -> Desired | None:
    """The desired document of a device, or None while it was given none."""
    payload = connection.execute(
        select(twins.c.payload).where(twins.c.device_id == device_id)
    ).scalar()
    return None if payload is None else document(payload, f"twin {device_id}")


def _put(connection: Connection, device_id: int, desired: Desired, now: float) -> Desired:
    observed = connection.execute(
        select(devices.c.gen_observed).where(devices.c.id == device_id)
    ).scalar_one()
    # A device that has seen a higher generation (this database was restored or replaced) would
    # ignore anything lower for ever.
    desired = msgspec.structs.replace(desired, gen=max(desired.gen, observed) + 1)
    payload = codec.seal(desired)
    if len(payload) > DESIRED_BYTES_MAX:
        raise BugError(
            f"desired document of device {device_id}: {len(payload)} bytes exceed "
            f"{DESIRED_BYTES_MAX}",
            hint="fewer variants per release, or fewer models per device",
        )
    row = {
        "device_id": device_id,
        "gen": desired.gen,
        "payload": payload,
        "digest": digest.of_bytes(codec.encode(desired)),
        "published_gen": 0,
        "updated": now,
    }
    update_columns = ("gen", "payload", "digest", "published_gen", "updated")
    upsert(connection, twins, [row], keys=("device_id",), update=update_columns)
    return desired


def create(connection: Connection, device_id: int, config: DeviceConfig, now: float) -> Desired:
    """First document of a device: no deployments, the manager's settings."""
    return _put(connection, device_id, Desired(gen=0, config=config), now)


def set_deployment(
    connection: Connection,
    device_id: int,
    *,
    model: str,
    deployment: Deployment | None,
    config: DeviceConfig,
    now: float,
) -> Desired:
    """Say what ``model`` should run on a device (None takes it away): gen + 1."""
    old = get(connection, device_id) or Desired(gen=0, config=config)
    deployments = {name: kept for name, kept in old.deployments.items() if name != model}
    if deployment is not None:
        deployments[model] = deployment
    changed = msgspec.structs.replace(old, deployments=deployments, config=config)
    return _put(connection, device_id, changed, now)


def overtake(connection: Connection, device_id: int, now: float) -> None:
    """Re-issue the document above a generation the device reported and we never wrote."""
    desired = get(connection, device_id)
    if desired is not None:
        _put(connection, device_id, desired, now)


def refresh_config(connection: Connection, config: DeviceConfig, now: float) -> int:
    """Re-issue every document whose settings differ from ``config``; returns how many."""
    changed = 0
    for row in list(connection.execute(select(twins.c.device_id, twins.c.payload))):
        desired = document(row.payload, f"twin {row.device_id}")
        if desired.config != config:
            replaced = msgspec.structs.replace(desired, config=config)
            _put(connection, row.device_id, replaced, now)
            changed += 1
    return changed


def generations(connection: Connection) -> dict[int, int]:
    """Generation of every twin, by device id."""
    return {row.device_id: row.gen for row in connection.execute(select(twins))}


def owe_all(connection: Connection) -> None:
    """Mark every document as unpublished: a restarted broker may have lost what it retained."""
    connection.execute(update(twins).values(published_gen=0))


def owe(connection: Connection, device_id: int) -> None:
    """Mark one document as unpublished."""
    connection.execute(update(twins).where(twins.c.device_id == device_id).values(published_gen=0))


def owed(connection: Connection, tenant: str, limit: int) -> list[Outgoing]:
    """Documents that the broker was not yet given, oldest change first."""
    statement = (
        select(twins.c.device_id, twins.c.gen, twins.c.payload, devices.c.shard, devices.c.device)
        .join(devices, devices.c.id == twins.c.device_id)
        .where(devices.c.tenant == tenant, twins.c.published_gen < twins.c.gen)
        .order_by(twins.c.updated, twins.c.device_id)
        .limit(limit)
    )
    return [
        Outgoing(row.device_id, Address(tenant, row.shard, row.device), row.gen, row.payload)
        for row in connection.execute(statement)
    ]


def published(connection: Connection, device_id: int, gen: int) -> None:
    """The broker took generation ``gen``. A newer one written meanwhile stays owed."""
    connection.execute(
        update(twins)
        .where(twins.c.device_id == device_id, twins.c.gen == gen)
        .values(published_gen=gen)
    )
