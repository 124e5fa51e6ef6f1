"""Join tokens: one device each, for a limited time; only their hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import Connection, Row, or_, select, update

from edgekit.contracts.errors import BadInputError
from edgekit_fleet.errors import NotFoundError, RefusedError
from edgekit_fleet.store.schema import join_tokens

PREFIX = "ekj_"  # makes a token that leaked recognisable
SECRET_BYTES = 32
TTL_S_MAX = 30 * 86400.0
NOTE_CHARS_MAX = 200

Found = Row[tuple[Any, ...]]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    connection: Connection,
    *,
    tenant: str,
    device: str | None,
    note: str,
    ttl_s: float,
    now: float,
) -> tuple[str, Found]:
    """Make a token; its secret is returned here and never again.

    Raises:
        BadInputError: a time to live or note that is out of bounds.
    """
    if not 0 < ttl_s <= TTL_S_MAX:
        raise BadInputError(f"ttl_s: {ttl_s} is not between 0 and {TTL_S_MAX:.0f} seconds")
    if len(note) > NOTE_CHARS_MAX:
        raise BadInputError(f"note: more than {NOTE_CHARS_MAX} characters")
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    result = connection.execute(
        join_tokens.insert().values(
            tenant=tenant,
            hash=_hash(secret),
            device=device,
            note=note,
            created=now,
            expires=now + ttl_s,
        )
    )
    (key,) = result.inserted_primary_key or (None,)
    return secret, connection.execute(select(join_tokens).where(join_tokens.c.id == key)).one()


def spend(connection: Connection, secret: str, tenant: str, device: str, now: float) -> None:
    """Use a token for ``device``. The same device may use it again until it expires.

    Otherwise an answer that was lost on its way would cost the operator a new token.

    Raises:
        RefusedError: unknown, expired, revoked, used by another, or for another device. It does
            not say which: whoever asks has shown no right to know.
    """
    done = connection.execute(
        update(join_tokens)
        .where(
            join_tokens.c.hash == _hash(secret),
            join_tokens.c.tenant == tenant,
            join_tokens.c.expires > now,
            join_tokens.c.revoked.is_(None),
            or_(join_tokens.c.used_by.is_(None), join_tokens.c.used_by == device),
            or_(join_tokens.c.device.is_(None), join_tokens.c.device == device),
        )
        .values(used=now, used_by=device)
    )
    if done.rowcount != 1:
        raise RefusedError(
            "this join token is not good for this device",
            hint="tokens expire and serve one device: `edgekit fleet token create` makes another",
        )


def revoke(connection: Connection, tenant: str, key: int, now: float) -> Found:
    """Make a token useless; what joined with it stays.

    Raises:
        NotFoundError: there is none such.
    """
    mine = (join_tokens.c.id == key) & (join_tokens.c.tenant == tenant)
    unrevoked = update(join_tokens).where(mine, join_tokens.c.revoked.is_(None))
    connection.execute(unrevoked.values(revoked=now))
    found = connection.execute(select(join_tokens).where(mine)).first()
    if found is None:
        raise NotFoundError(f"token {key}: unknown", hint="`edgekit fleet token list` lists them")
    return found


def listed(connection: Connection, tenant: str) -> list[Found]:
    """Every token, newest first."""
    statement = select(join_tokens).where(join_tokens.c.tenant == tenant)
    return list(connection.execute(statement.order_by(join_tokens.c.id.desc())))
