"""Upload sessions of the distribution API: bounded, kept in memory, ended by a restart.

A session that a restart ended answers 404 and the client starts again, as the spec has it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit_fleet.artifacts import ArtifactStore, BlobWriter
from edgekit_fleet.errors import NotFoundError

SESSIONS_MAX = 64  # each holds a file and a handle
IDLE_S_MAX = 3600.0


@dataclass
class Session:
    """One upload in progress."""

    repository: str
    writer: BlobWriter
    touched: float
    busy: bool = False


@dataclass
class Uploads:
    """All sessions of one store."""

    store: ArtifactStore
    clock: Callable[[], float] = time.monotonic
    _sessions: dict[str, Session] = field(default_factory=dict)

    def start(self, repository: str) -> str:
        """Begin a session; returns its id.

        Raises:
            ResourceError: too many at once, or no space for another file.
        """
        now = self.clock()
        idle = [
            name
            for name, session in self._sessions.items()
            if not session.busy and now - session.touched > IDLE_S_MAX
        ]
        for name in idle:
            self._sessions.pop(name).writer.discard()
        if len(self._sessions) >= SESSIONS_MAX:
            raise ResourceError(f"{SESSIONS_MAX} uploads are in progress", hint="try again later")
        name = uuid.uuid4().hex
        self._sessions[name] = Session(repository, BlobWriter(self.store), now)
        return name

    def find(self, repository: str, name: str) -> Session:
        """The session.

        Raises:
            NotFoundError: there is none.
        """
        session = self._sessions.get(name)
        if session is None or session.repository != repository:
            raise NotFoundError(f"{repository}: no upload {name[:64]}")
        return session

    @contextmanager
    def use(self, repository: str, name: str) -> Iterator[BlobWriter]:
        """The session's writer, for one request at a time.

        A failure to write ends the session, since what was written is no longer known; a client
        that went away leaves it where it stands.

        Raises:
            NotFoundError: no such session.
            BadInputError: another request is writing to it.
        """
        session = self.find(repository, name)
        if session.busy:
            raise BadInputError(f"upload {name} is written to by another request")
        session.busy = True
        try:
            yield session.writer
        except (BadInputError, ResourceError):
            self.end(name)
            raise
        finally:
            session.busy, session.touched = False, self.clock()

    def end(self, name: str) -> None:
        """Forget a session and what is left of its file."""
        session = self._sessions.pop(name, None)
        if session is not None:
            session.writer.discard()
