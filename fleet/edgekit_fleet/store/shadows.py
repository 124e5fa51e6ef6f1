"""What candidates showed in the shadow of what serves: figures of windows without inferences."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from edgekit.contracts.messages import Window
from edgekit_fleet.store.schema import devices, shadows


class Shadowed(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one candidate over every device that had it in the shadow."""

    model: str
    release: str
    digest: str
    devices: int
    shadowed: int
    agreed: int
    errors: int
    nan: int
    dropped: int


def add(connection: Connection, device_id: int, window: Window) -> None:
    """Store the shadow figures of a window that is new here."""
    if not window.shadowed:
        return
    connection.execute(
        shadows.insert().values(
            device_id=device_id,
            model=window.model,
            release=window.release,
            digest=window.digest,
            start=window.start,
            end=window.end,
            shadowed=window.shadowed,
            agreed=window.agreed,
            errors=window.shadow_errors,
            nan=window.nan,
            dropped=window.shadow_dropped,
        )
    )


def sums(connection: Connection, tenant: str, model: str) -> list[Shadowed]:
    """By candidate of ``model``."""
    by = (shadows.c.model, shadows.c.release, shadows.c.digest)
    names = ("shadowed", "agreed", "errors", "nan", "dropped")
    statement = (
        select(
            *by,
            func.count(shadows.c.device_id.distinct()).label("devices"),
            *(func.sum(shadows.c[name]).label(name) for name in names),
        )
        .join(devices, devices.c.id == shadows.c.device_id)
        .where(devices.c.tenant == tenant, shadows.c.model == model)
        .group_by(*by)
        .order_by(*by)
    )
    fields = Shadowed.__struct_fields__
    return [
        Shadowed(**{name: getattr(row, name) for name in fields})
        for row in connection.execute(statement)
    ]
