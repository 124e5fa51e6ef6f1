"""Our distribution API behind a real server, with what real registries add: logins and failures."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

from edgekit.contracts.errors import UnavailableError
from edgekit_fleet import registry_api, registry_push
from edgekit_fleet.artifacts import ArtifactStore
from edgekit_fleet.objects import Objects

USER, PASSWORD = "carla", "s3cret"


@dataclass
class Served:
    """A registry on a port of its own; its behaviour can be changed while it runs."""

    store: ArtifactStore
    port: int = 0
    login: str = ""  # "", basic or bearer
    stall_s: float = 0.0
    statuses: list[int] = field(default_factory=list)  # answered once each, before anything else
    cut_after: int = 0  # break off bodies of GET blobs after so many bytes, once
    seen: list[tuple[str, str]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


def application(served: Served) -> FastAPI:
    app = FastAPI()
    routes = registry_api.router(served.store)
    registry_push.add(routes, served.store)
    app.include_router(routes)
    basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    @app.get("/token")
    def token(request: Request) -> Response:
        if request.headers.get("authorization") != basic:
            return Response(status_code=401)
        scope = request.query_params["scope"].encode().hex()
        return Response(f'{{"token": "{scope}"}}', media_type="application/json")

    @app.exception_handler(UnavailableError)
    async def refused(_request: Request, _error: UnavailableError) -> Response:
        return Response(status_code=503)

    @app.middleware("http")
    async def behave(request, call_next):
        served.seen.append((request.method, request.url.path))
        await asyncio.sleep(served.stall_s)
        if served.statuses:
            return Response(status_code=served.statuses.pop(0))
        told = request.headers.get("authorization")
        if served.login == "basic" and told != basic:
            return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if served.login == "bearer" and request.url.path != "/token":
            action = "pull" if request.method in {"GET", "HEAD"} else "pull,push"
            scope = f"repository:meter:{action}"
            if told != f"Bearer {scope.encode().hex()}":
                realm = f'Bearer realm="http://{served.host}/token",service="t",scope="{scope}"'
                return Response(status_code=401, headers={"WWW-Authenticate": realm})
        response = await call_next(request)
        if served.cut_after and request.method == "GET" and "/blobs/" in request.url.path:
            response.body_iterator = _cut(response.body_iterator, served)
        return response

    return app


async def _cut(chunks, served):
    async for chunk in chunks:
        keep, served.cut_after = served.cut_after, 0
        yield chunk[:keep] if keep else chunk
        if keep:
            raise ConnectionResetError("the cable was pulled")


@contextmanager
def serving(root: Path, objects: Objects | None = None) -> Iterator[Served]:
    served = Served(ArtifactStore.open(root, objects))
    config = uvicorn.Config(application(served), port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    served.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join(10)
