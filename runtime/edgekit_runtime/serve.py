"""Open Inference Protocol v2 over HTTP: a bare ASGI application.

Errors are ``{"error": ...}`` with 400 (request or input wrong), 404 (unknown path, model or request
id), 405, 413 (body too large), 500 (engine failed; logged) and 503 (nothing to serve with).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from edgekit import __version__
from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError
from edgekit_runtime import oip
from edgekit_runtime.errors import EngineError, NotServingError
from edgekit_runtime.ports import Clock
from edgekit_runtime.predictor import scored_output
from edgekit_runtime.session import Session

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
log = logging.getLogger(__name__)


class _HttpError(Exception):
    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


class InferenceApp:
    """ASGI application over the sessions that ``sessions()`` returns."""

    def __init__(
        self,
        sessions: Callable[[], Mapping[str, Session]],
        clock: Clock,
        *,
        body_bytes_max: int,
        workers: int = 2,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._body_bytes_max = body_bytes_max
        self._on_answer = on_answer
        # Inference leaves the event loop, so that health checks answer while a model computes.
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="infer")

    def close(self) -> None:
        """Wait for running inferences."""
        self._pool.shutdown(wait=True)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        headers: Mapping[str, str] = {}
        try:
            status, body = 200, await self._route(scope, receive)
        except _HttpError as exc:
            status, body, headers = exc.status, _error(exc.message), exc.headers
        except EdgekitError as exc:
            status, body = _status(exc), _error(exc.message)
            if status >= 500 and not isinstance(exc, NotServingError):
                log.error("%s %s: %s", scope["method"], scope["path"], exc.message)  # noqa: TRY400 - one line: the cause is expected
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            status, body = 500, _error("internal error, see the agent's log")
        await _respond(send, status, body, headers)

    async def _route(self, scope: Mapping[str, Any], receive: Receive) -> bytes:
        parts = [part for part in scope["path"].split("/") if part]
        if parts == ["v2"]:
            _only(scope, "GET")
            extensions = ["edgekit_feedback"]
            return _json(
                {"name": "edgekit-agent", "version": __version__, "extensions": extensions}
            )
        if parts in (["v2", "health", "live"], ["v2", "health", "ready"]):
            _only(scope, "GET")
            return self._health(parts[2])
        if len(parts) in (3, 4) and parts[:2] == ["v2", "models"]:
            action = parts[3] if len(parts) == 4 else "metadata"
            return await self._model(parts[2], action, scope, receive)
        raise _HttpError(404, f"no such path: {scope['path'][:200]}")

    def _health(self, which: str) -> bytes:
        if which == "live":
            return _json({"live": True})
        sessions = self._sessions().values()
        if not sessions or any(session.live is None for session in sessions):
            raise _HttpError(503, "not every assigned model is serving")
        return _json({"ready": True})

    async def _model(
        self, name: str, action: str, scope: Mapping[str, Any], receive: Receive
    ) -> bytes:
        session = self._sessions().get(name)
        if session is None:
            raise _HttpError(404, f"model {name[:80]!r} is not known to this device")
        if action == "infer":
            _only(scope, "POST")
            return await self._infer(session, await self._body(scope, receive))
        if action == "feedback":
            _only(scope, "POST")
            return self._feedback(session, await self._body(scope, receive))
        if action not in ("metadata", "ready"):
            raise _HttpError(404, f"no such path: {scope['path'][:200]}")
        _only(scope, "GET")
        live = session.live
        if live is None:
            raise NotServingError(f"model {name!r} is not serving")
        if action == "ready":
            return _json({"name": name, "ready": True})
        manifest = live.predictor.bundle.manifest
        platform = f"{manifest.engine}_{manifest.target}"
        return oip.metadata(name, (live.ref.version,), platform, live.predictor.contract)

    async def _infer(self, session: Session, raw: bytes) -> bytes:
        request, arrays = oip.parse_infer(raw, self._body_bytes_max)
        loop = asyncio.get_running_loop()

        def work() -> bytes:
            result = session.infer(arrays, request_id=request.id)
            return oip.answer(session.model, result, request)

        body = await loop.run_in_executor(self._pool, work)
        self._on_answer()
        return body

    def _feedback(self, session: Session, raw: bytes) -> bytes:
        feedback = codec.decode(oip.Feedback, raw, what="feedback")
        label = feedback.label
        live = session.live
        if isinstance(label, str):
            names = scored_output(live.predictor.contract).labels if live else ()
            if label not in names:
                known = ", ".join(names[:20]) or "none"
                raise BadInputError(f"feedback: label {label[:80]!r} is not one of: {known}")
            label = names.index(label)
        if not 0 <= label < 2**31:
            raise BadInputError(f"feedback: label {label} is not a class number")
        right = session.journal.feedback(feedback.id, label, time=self._clock.wall())
        if right is None:
            raise _HttpError(404, f"request id {feedback.id[:80]!r} is not (or no longer) known")
        return _json({"id": feedback.id, "correct": right})

    async def _body(self, scope: Mapping[str, Any], receive: Receive) -> bytes:
        limit = self._body_bytes_max
        for key, value in scope["headers"]:
            if key == b"content-length" and value.isdigit() and int(value) > limit:
                raise _HttpError(413, f"body of {int(value)} bytes, allowed are {limit}")
        data = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _HttpError(400, "the client went away")
            data += message.get("body", b"")
            more = message.get("more_body", False)
            if len(data) > limit:
                raise _HttpError(413, f"body is larger than the {limit} bytes allowed")
        return bytes(data)


def _only(scope: Mapping[str, Any], method: str) -> None:
    if scope["method"] != method:
        raise _HttpError(405, f"{scope['method']} is not allowed here", {"allow": method})


def _status(exc: EdgekitError) -> int:
    if isinstance(exc, BadInputError):
        return 400
    if isinstance(exc, (NotServingError, ResourceError)):
        return 503
    return 500 if isinstance(exc, EngineError) else 503


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _error(message: str) -> bytes:
    return _json({"error": message})


async def _respond(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((key.encode(), value.encode()) for key, value in headers.items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
