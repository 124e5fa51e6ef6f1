"""HTTP API of the manager, under ``/api/v1``, and the status page at ``/``.

Every answer is a struct of `views`, encoded by msgspec; every refusal is ``{"error", "hint"}`` with
a status that follows from the error's type. There is no authentication yet: see `config.check`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from edgekit import __version__
from edgekit.contracts import codec
from edgekit.contracts.errors import (
    BadInputError,
    EdgekitError,
    ResourceError,
    UnavailableError,
    UsageError,
)
from edgekit.contracts.release import Release
from edgekit.contracts.release import validate as validate_release
from edgekit_fleet import join_api, registry_api, registry_push, views
from edgekit_fleet.artifacts import ArtifactStore
from edgekit_fleet.errors import NotFoundError, RefusedError
from edgekit_fleet.join_api import Joining
from edgekit_fleet.queries import Queries
from edgekit_fleet.rollout import core
from edgekit_fleet.rollout.spec import SPEC_BYTES_MAX
from edgekit_fleet.rollout.spec import parse as parse_spec
from edgekit_fleet.store import releases, rollouts, shadows
from edgekit_fleet.store.engine import Database

BODY_BYTES_MAX = 1024 * 1024
_STATUS: tuple[tuple[type[EdgekitError], int], ...] = (
    (NotFoundError, 404),
    (RefusedError, 403),
    (BadInputError, 422),
    (UsageError, 422),
    (UnavailableError, 503),
    (ResourceError, 507),
)
_VIEWS = (
    views.HealthView,
    views.DeviceSummary,
    views.DeviceDetail,
    views.ReleaseView,
    views.FieldVersion,
    shadows.Shadowed,
    views.TokenView,
    views.RolloutView,
    views.RolloutDetail,
    views.InferencesView,
    views.EventsView,
    views.Problem,
)


def answer(value: Any, status: int = 200) -> Response:
    """``value`` as JSON."""
    return Response(codec.encode(value), status_code=status, media_type="application/json")


def _refuse(error: EdgekitError) -> Response:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    return answer(views.Problem(error=error.message, hint=error.hint), status)


def _documented(name: str, *, many: bool = False, status: int = 200) -> dict[int | str, Any]:
    """OpenAPI responses of a route that answers view ``name``."""
    reference = {"$ref": f"#/components/schemas/{name}"}
    schema = {"type": "array", "items": reference} if many else reference
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": "ok", "content": {"application/json": {"schema": schema}}},
        "4XX": {"description": "refused", "content": {"application/json": problem}},
    }


async def _body(request: Request, bytes_max: int) -> bytes:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > bytes_max:
            raise BadInputError(f"request body: more than {bytes_max} bytes")
    return bytes(raw)


def _reads(
    queries: Queries, health: Callable[[], views.HealthView], clock: Callable[[], float]
) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/health", responses=_documented("HealthView"), tags=["manager"])
    def get_health() -> Response:
        return answer(health())

    @routes.get("/devices", responses=_documented("DeviceSummary", many=True), tags=["devices"])
    def get_devices() -> Response:
        return answer(queries.device_list(clock()))

    @routes.get("/devices/{device}", responses=_documented("DeviceDetail"), tags=["devices"])
    def get_device(device: str) -> Response:
        return answer(queries.device(device, clock()))

    @routes.get("/releases", responses=_documented("ReleaseView", many=True), tags=["releases"])
    def get_releases() -> Response:
        return answer(queries.release_list())

    @routes.get(
        "/models/{model}/field", responses=_documented("FieldVersion", many=True), tags=["devices"]
    )
    def get_field(model: str) -> Response:
        return answer(queries.field(model))

    @routes.get("/rollouts", responses=_documented("RolloutView", many=True), tags=["rollouts"])
    def get_rollouts() -> Response:
        return answer(queries.rollout_list())

    @routes.get("/rollouts/{name}", responses=_documented("RolloutDetail"), tags=["rollouts"])
    def get_rollout(name: str) -> Response:
        return answer(queries.rollout(name))

    routes.include_router(_telemetry(queries))
    return routes


def _telemetry(queries: Queries) -> APIRouter:
    routes = APIRouter()

    @routes.get(
        "/models/{model}/shadow", responses=_documented("Shadowed", many=True), tags=["telemetry"]
    )
    def get_shadow(model: str) -> Response:
        return answer(queries.shadow(model))

    @routes.get("/inferences", responses=_documented("InferencesView"), tags=["telemetry"])
    def get_inferences() -> Response:
        return answer(queries.inferences())

    @routes.get("/events", responses=_documented("EventsView"), tags=["telemetry"])
    def get_events(
        device: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> Response:
        return answer(queries.events(device=device, limit=limit))

    return routes


def _publish(database: Database, store: ArtifactStore, raw: bytes, now: float) -> Response:
    release = validate_release(codec.decode(Release, raw, what="release"))
    for target, variant in release.variants.items():
        if store.resolve(variant.repository, variant.digest) is None:
            raise BadInputError(
                f"release {release.name}: {target}: bundle {variant.repository}@{variant.digest} "
                "is not in the artifact store",
                hint="`edgekit release publish` pushes the bundles first",
            )
        image = variant.image
        if image and not image.registry and not store.resolve(image.repository, image.digest):
            raise BadInputError(
                f"release {release.name}: {target}: image {image.repository}@{image.digest} "
                "is not in the artifact store",
                hint="`edgekit release publish` pushes the images first",
            )
    with database.write() as connection:
        created = releases.publish(connection, release, now)
    return answer(views.ReleaseView(release=release, created=now), 201 if created else 200)


def _start(database: Database, queries: Queries, raw: bytes, now: float) -> Response:
    spec = parse_spec(raw)
    with database.write() as connection:
        rollouts.create(connection, spec, core.initial(spec, now), now)
    return answer(queries.rollout(spec.name), 201)


class _AbortRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str = "asked for through the API"


def _writes(
    database: Database, queries: Queries, store: ArtifactStore, clock: Callable[[], float]
) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")

    @routes.post("/releases", responses=_documented("ReleaseView", status=201), tags=["releases"])
    async def post_release(request: Request) -> Response:
        raw = await _body(request, BODY_BYTES_MAX)
        return await run_in_threadpool(_publish, database, store, raw, clock())

    @routes.post("/rollouts", responses=_documented("RolloutDetail", status=201), tags=["rollouts"])
    async def post_rollout(request: Request) -> Response:
        raw = await _body(request, SPEC_BYTES_MAX)
        return await run_in_threadpool(_start, database, queries, raw, clock())

    @routes.post(
        "/rollouts/{name}/abort", responses=_documented("RolloutDetail"), tags=["rollouts"]
    )
    async def post_abort(request: Request, name: str) -> Response:
        raw = await _body(request, SPEC_BYTES_MAX)
        wanted = codec.decode(_AbortRequest, raw or b"{}", what="abort request")
        return await run_in_threadpool(_abort, database, queries, name, wanted.reason, clock())

    return routes


def _abort(database: Database, queries: Queries, name: str, reason: str, now: float) -> Response:
    with database.write() as connection:
        if not rollouts.request_abort(connection, name, reason[:500], now):
            error = f"rollout {name}: has ended already"
            return answer(views.Problem(error=error), 409)
    return answer(queries.rollout(name))


def _document_views(app: FastAPI) -> Callable[[], dict[str, Any]]:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, components = msgspec.json.schema_components(
                _VIEWS, ref_template="#/components/schemas/{name}"
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi


def create_app(
    *,
    database: Database,
    store: ArtifactStore,
    queries: Queries,
    health: Callable[[], views.HealthView],
    joining: Joining | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The manager's HTTP application; without ``joining`` it hands out no install scripts."""
    app = FastAPI(title="edgekit fleet manager", version=__version__, redoc_url=None, docs_url=None)
    page = resources.files("edgekit_fleet.dashboard").joinpath("index.html").read_bytes()
    # Nothing is loaded from elsewhere, and no text of a device can become a script.
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    headers = {
        "Content-Security-Policy": policy + "connect-src 'self'",
        "Cache-Control": "no-store",
    }

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def status_page() -> Response:
        return HTMLResponse(page, headers=headers)

    app.include_router(_reads(queries, health, clock))
    app.include_router(_writes(database, queries, store, clock))
    artifacts = registry_api.router(store)
    registry_push.add(artifacts, store)
    app.include_router(artifacts)
    if joining is not None:
        app.include_router(join_api.router(joining))

    @app.exception_handler(EdgekitError)
    async def refused(_request: Request, error: EdgekitError) -> Response:
        return _refuse(error)

    @app.exception_handler(HTTPException)
    async def http_problem(_request: Request, error: HTTPException) -> Response:
        response = answer(views.Problem(error=str(error.detail)), error.status_code)
        headers: Mapping[str, str] = error.headers or {}
        response.headers.update(headers)
        return response

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(views.Problem(error=f"{where}: {first['msg']}"), 422)

    app.openapi = _document_views(app)  # type: ignore[method-assign]  # FastAPI's own way
    return app
