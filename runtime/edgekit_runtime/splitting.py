"""Which of two arms a request belongs to, as the worker that has read it finds out."""

from __future__ import annotations

import random

import msgspec

from edgekit_runtime.http1 import Request
from edgekit_runtime.journal import hash_id
from edgekit_runtime.oip import Route
from edgekit_runtime.region import Region
from edgekit_runtime.session import Session
from edgekit_runtime.wire import Division

_HASHES = 2.0**64


class _Asked(msgspec.Struct, frozen=True):
    """All that is read of a request's body here."""

    id: str | None = None


def is_seconds(request: int, share: float) -> bool:
    """Whether the second arm answers; ``request`` is a `hash_id`, 0 is drawn."""
    return (request / _HASHES if request else random.random()) < share


class Splitting:
    """One worker's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._division = Division(share=0.0)

    def divide(self, division: Division) -> None:
        """Hold to another division from now on."""
        self._division = division
        self.apply()

    def apply(self) -> None:
        """Labels that arrive go to rings that are ours to write to, in a new journal, too."""
        self._session.place.journal.foreign = self._is_foreign

    def elsewhere(self, request: Request, route: Route) -> bool:
        """Whether the other arm is to answer."""
        division = self._division
        if division.share <= 0.0:
            return False
        end = request.json_length if request.json_length is not None else len(request.body)
        try:
            asked = msgspec.json.decode(memoryview(request.body)[:end], type=_Asked)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False  # whoever answers says what is wrong with it
        hashed = hash_id(asked.id)
        if route.action == "feedback":
            return not self._session.place.journal.knows(hashed)
        return is_seconds(hashed, division.share) is not division.second

    def _is_foreign(self, region: Region) -> bool:
        division = self._division
        if division.share <= 0.0:
            return False
        if division.second:
            return region is not self._session.place.region
        return region.labels.digest == division.beside
