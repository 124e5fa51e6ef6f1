"""What agent and workers alike check before they answer, and how they say no."""

from __future__ import annotations

import math

from edgekit.contracts.errors import BadInputError, EdgekitError, UnavailableError
from edgekit_runtime import oip
from edgekit_runtime.http1 import HttpError, Reply, Request
from edgekit_runtime.oip import Route

ACTIONS = ("infer", "feedback")  # what workers answer


def only(request: Request, method: str) -> None:
    """Raises `HttpError` (405) for another method."""
    if request.method != method:
        raise HttpError(405, f"{request.method} is not allowed here", headers={"allow": method})


def check_version(route: Route, version: str) -> None:
    """Raises `HttpError` (404) when the path names another version than the one that serves."""
    if route.version is not None and route.version != version:
        raise HttpError(404, f"model {route.model[:80]!r} serves version {version!r} here")


def failed(exc: EdgekitError) -> Reply:
    """The answer that stands for ``exc``: 400 for bad input, else 503 and when to come again."""
    if isinstance(exc, BadInputError):
        return Reply(400, oip.error(exc.message))
    seconds = exc.retry_after_s if isinstance(exc, UnavailableError) else None
    after = str(max(1, math.ceil(seconds or 1.0)))
    return Reply(503, oip.error(exc.message), {"retry-after": after})
