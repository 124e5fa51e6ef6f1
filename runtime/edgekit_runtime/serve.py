"""Open Inference Protocol v2 over HTTP: a bare ASGI application.

It reads a request, hands its body undecoded to the worker that holds the model, counts what the
worker saw and answers. Errors are ``{"error": ...}`` with 400 (request or input wrong), 404
(unknown path, model or request id), 405, 413 (body too large), 429 (too many requests at once),
500 (engine failed; logged) and 503 (nothing to serve with, or no room); 429 and 503 say when to
come again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from edgekit import __version__
from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, EdgekitError, UnavailableError
from edgekit_runtime import oip
from edgekit_runtime.contract_facts import scored_output
from edgekit_runtime.errors import NotServingError, RetiredError
from edgekit_runtime.metrics import CONTENT_TYPE, Metrics
from edgekit_runtime.ports import Clock
from edgekit_runtime.record import SLOT_NAMES
from edgekit_runtime.serving import Live, Serving
from edgekit_runtime.worker_model import WorkerModel

SWITCHES_MAX = 8  # a request follows as many switches; more within one request is a fault
_Answer = tuple[int, Mapping[str, str], bytes]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
log = logging.getLogger(__name__)


class _HttpError(Exception):
    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@dataclass(frozen=True)
class Limits:
    """What the endpoint takes at once."""

    body_bytes_max: int
    requests_max: int  # waiting for a worker's answer, over all models
    bodies_bytes_max: int  # of all requests being read or answered


class InferenceApp:
    """ASGI application over the models that ``servings()`` returns."""

    def __init__(
        self,
        servings: Callable[[], Mapping[str, Serving]],
        clock: Clock,
        limits: Limits,
        *,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self._servings = servings
        self._clock = clock
        self._limits = limits
        self._on_answer = on_answer
        self._requests = 0
        self._bytes = 0
        self._metrics = Metrics()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        headers: Mapping[str, str] = {}
        try:
            status, headers, body = await self._route(scope, receive)
        except _HttpError as exc:
            status, body, headers = exc.status, oip.error(exc.message), exc.headers
        except EdgekitError as exc:
            status, body = _status(exc), oip.error(exc.message)
            if status == 503:
                headers = {"retry-after": _retry_after(exc)}
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            status, body = 500, oip.error("internal error, see the agent's log")
        if status >= 400:
            self._metrics.refuse(status)
        await _respond(send, status, body, headers)

    async def _route(self, scope: Mapping[str, Any], receive: Receive) -> _Answer:
        parts = [part for part in scope["path"].split("/") if part]
        if parts == ["v2"]:
            _only(scope, "GET")
            about = {"name": "edgekit-agent", "version": __version__, "extensions": oip.EXTENSIONS}
            return 200, {}, _json(about)
        if parts == ["metrics"]:
            _only(scope, "GET")
            page = self._metrics.render(self._servings(), self._requests)
            return 200, {"content-type": CONTENT_TYPE}, page
        if parts in (["v2", "health", "live"], ["v2", "health", "ready"]):
            _only(scope, "GET")
            return 200, {}, self._health(parts[2])
        if parts[:2] == ["v2", "models"] and len(parts) > 2:
            name, rest = parts[2], parts[3:]
            if len(rest) >= 2 and rest[0] == "versions":
                self._check_version(name, rest[1])
                rest = rest[2:]
            if len(rest) <= 1:
                return await self._model(name, rest[0] if rest else "metadata", scope, receive)
        raise _HttpError(404, f"no such path: {scope['path'][:200]}")

    def _health(self, which: str) -> bytes:
        if which == "live":
            return _json({"live": True})
        servings = self._servings().values()
        if not servings or any(serving.live is None for serving in servings):
            raise NotServingError("not every assigned model is serving", retry_after_s=1.0)
        return _json({"ready": True})

    def _serving(self, name: str) -> Serving:
        serving = self._servings().get(name)
        if serving is None:
            raise _HttpError(404, f"model {name[:80]!r} is not known to this device")
        return serving

    def _check_version(self, name: str, version: str) -> None:
        live = _live(self._serving(name))
        if live.ref.version != version:
            raise _HttpError(404, f"model {name[:80]!r} serves version {live.ref.version!r} here")

    async def _model(
        self, name: str, action: str, scope: Mapping[str, Any], receive: Receive
    ) -> _Answer:
        serving = self._serving(name)
        if action == "infer":
            _only(scope, "POST")
            return await self._infer(serving, scope, receive)
        if action == "feedback":
            _only(scope, "POST")
            async with self._body(scope, receive) as raw:
                return 200, {}, self._feedback(serving, raw)
        if action not in ("metadata", "ready"):
            raise _HttpError(404, f"no such path: {scope['path'][:200]}")
        _only(scope, "GET")
        live = _live(serving)
        if action == "ready":
            return 200, {}, _json({"name": name, "ready": True})
        manifest = live.loaded.manifest
        label = oip.Label(name, live.ref.version, live.slot)
        platform = f"{manifest.engine}_{manifest.target}"
        return 200, {}, oip.metadata(label, platform, live.loaded.contract)

    async def _infer(self, serving: Serving, scope: Mapping[str, Any], receive: Receive) -> _Answer:
        if self._requests >= self._limits.requests_max:
            raise _HttpError(429, "too many requests at once", {"retry-after": "1"})
        self._requests += 1
        try:
            async with self._body(scope, receive) as raw:
                return await self._ask(serving, _json_length(scope), raw)
        finally:
            self._requests -= 1

    async def _ask(self, serving: Serving, json_length: int, raw: bytes) -> _Answer:
        for _ in range(SWITCHES_MAX):
            live = _live(serving)
            assert isinstance(live.loaded, WorkerModel)
            try:
                answer = await live.loaded.ask(SLOT_NAMES.index(live.slot), json_length, raw)
            except RetiredError:
                continue  # replaced between looking and asking: ask the one that serves now
            self._metrics.observe((serving.model, live.ref.version, live.slot), answer.seen)
            body = answer.body
            if not serving.count(live, answer.seen) and answer.status == 200:
                body = oip.repeated(body)
            if answer.status == 200:
                self._on_answer()
            elif answer.status >= 500:
                log.error("%s %s: %s", serving.model, live.ref.version, body.decode()[:500])
            return answer.status, _body_headers(answer.json_length), body
        raise NotServingError(f"model {serving.model!r} is being replaced", retry_after_s=1.0)

    def _feedback(self, serving: Serving, raw: bytes) -> bytes:
        feedback = codec.decode(oip.Feedback, raw, what="feedback")
        label = feedback.label
        live = serving.live
        if isinstance(label, str):
            names = scored_output(live.loaded.contract).labels if live else ()
            if label not in names:
                known = ", ".join(names[:20]) or "none"
                raise BadInputError(f"feedback: label {label[:80]!r} is not one of: {known}")
            label = names.index(label)
        if not 0 <= label < 2**31:
            raise BadInputError(f"feedback: label {label} is not a class number")
        right = serving.journal.feedback(feedback.id, label, time=self._clock.wall())
        if right is None:
            raise _HttpError(404, f"request id {feedback.id[:80]!r} is not (or no longer) known")
        return _json({"id": feedback.id, "correct": right})

    @asynccontextmanager
    async def _body(self, scope: Mapping[str, Any], receive: Receive) -> AsyncIterator[bytes]:
        """The body; the room it takes is given back when the request is answered."""
        limit, room = self._limits.body_bytes_max, self._limits.bodies_bytes_max
        announced = _header(scope, b"content-length")
        if announced is not None and announced > limit:
            raise _HttpError(413, f"body of {announced} bytes, allowed are {limit}")
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _HttpError(400, "the client went away")
                chunk = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                self._bytes += len(chunk)
                more = message.get("more_body", False)
                if size > limit:
                    raise _HttpError(413, f"body is larger than the {limit} bytes allowed")
                if self._bytes > room:
                    raise _HttpError(503, "no room for another body", {"retry-after": "1"})
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self._bytes -= size


def _live(serving: Serving) -> Live:
    live = serving.live
    if live is None:
        raise NotServingError(f"model {serving.model!r} is not serving", retry_after_s=1.0)
    return live


def _header(scope: Mapping[str, Any], name: bytes) -> int | None:
    for key, value in scope["headers"]:
        if key == name:
            if not value.isdigit() or len(value) > 15:
                raise _HttpError(400, f"header {name.decode()}: not a length")
            return int(value)
    return None


def _json_length(scope: Mapping[str, Any]) -> int:
    found = _header(scope, b"inference-header-content-length")
    return oip.ALL_JSON if found is None else min(found, 2**31 - 1)


def _body_headers(json_length: int) -> Mapping[str, str]:
    if json_length == oip.ALL_JSON:
        return {}
    kind = "application/octet-stream"
    return {"inference-header-content-length": str(json_length), "content-type": kind}


def _retry_after(exc: EdgekitError) -> str:
    seconds = exc.retry_after_s if isinstance(exc, UnavailableError) else None
    return str(max(1, math.ceil(seconds or 1.0)))


def _only(scope: Mapping[str, Any], method: str) -> None:
    if scope["method"] != method:
        raise _HttpError(405, f"{scope['method']} is not allowed here", {"allow": method})


def _status(exc: EdgekitError) -> int:
    return 400 if isinstance(exc, BadInputError) else 503


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


async def _respond(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    fields = [(b"content-length", str(len(body)).encode())]
    if "content-type" not in headers:
        fields.append((b"content-type", b"application/json"))
    fields += [(key.encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
