"""Releases: immutable once published."""

from __future__ import annotations

from sqlalchemy import Connection, select

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.release import Release
from edgekit_fleet.store.schema import releases


def publish(connection: Connection, release: Release, now: float) -> bool:
    """Store ``release``.

    Returns:
        False when the identical release was there already.

    Raises:
        BadInputError: another release has this name.
    """
    document = codec.encode(release)
    stored = connection.execute(
        select(releases.c.document).where(releases.c.name == release.name)
    ).scalar()
    if stored is None:
        connection.execute(
            releases.insert().values(
                name=release.name, model=release.model, document=document, created=now
            )
        )
        return True
    if stored != document:
        raise BadInputError(
            f"release {release.name}: already published with other contents",
            hint="releases never change: create one under a new name",
        )
    return False


def _decode(name: str, document: bytes) -> Release:
    return codec.decode(Release, document, what=f"stored release {name}")


def get(connection: Connection, name: str) -> Release:
    """The release called ``name``.

    Raises:
        BadInputError: there is none; lists what there is.
    """
    document = connection.execute(
        select(releases.c.document).where(releases.c.name == name)
    ).scalar()
    if document is None:
        known = connection.execute(
            select(releases.c.name).order_by(releases.c.created.desc()).limit(20)
        ).scalars()
        raise BadInputError(
            f"release {name!r}: not published here",
            hint="published: " + (", ".join(known) or "none yet (edgekit release publish)"),
        )
    return _decode(name, document)


def all_releases(connection: Connection) -> list[tuple[Release, float]]:
    """Every release with the time it was published, newest first."""
    rows = connection.execute(select(releases).order_by(releases.c.created.desc()))
    return [(_decode(row.name, row.document), row.created) for row in rows]
