"""What the agent itself answers: health, metadata, metrics, and why nothing else can."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from edgekit import __version__
from edgekit.contracts.errors import EdgekitError
from edgekit_runtime import oip
from edgekit_runtime.errors import NotServingError
from edgekit_runtime.http1 import HttpError, Reply, Request
from edgekit_runtime.lane import Lane
from edgekit_runtime.metrics import CONTENT_TYPE, Metrics
from edgekit_runtime.oip import Route
from edgekit_runtime.proving import Proven
from edgekit_runtime.replies import ACTIONS, check_version, failed, only
from edgekit_runtime.serving import Live

log = logging.getLogger(__name__)


class Control:
    """Over the lanes of a front."""

    def __init__(self) -> None:
        self.lanes: Mapping[str, Lane] = {}
        self.metrics = Metrics()

    def answer(self, request: Request) -> Reply:
        """The answer to ``request``; problems are answers, too."""
        try:
            return self._answer(request)
        except HttpError as exc:
            return Reply(exc.status, oip.error(exc.message), exc.headers)
        except EdgekitError as exc:
            return failed(exc)
        except Exception:
            log.exception("%s %s failed", request.method, request.path[:200])
            return Reply(500, oip.error("internal error, see the agent's log"))

    def _answer(self, request: Request) -> Reply:
        path = "/".join(part for part in request.path.split("/") if part)
        if path == "v2":
            only(request, "GET")
            about = {"name": "edgekit-agent", "version": __version__, "extensions": oip.EXTENSIONS}
            return _json(about)
        if path == "metrics":
            only(request, "GET")
            page = self.metrics.render(self.lanes)
            return Reply(200, page, {"content-type": CONTENT_TYPE})
        if path in ("v2/health/live", "v2/health/ready"):
            only(request, "GET")
            return self._health(path)
        route = oip.route(request.path)
        if route is not None:
            return self._model(request, route)
        raise HttpError(404, f"no such path: {request.path[:200]}")

    def _health(self, path: str) -> Reply:
        if path.endswith("live"):
            return _json({"live": True})
        lanes = self.lanes.values()
        if not lanes or any(lane.serving.live is None for lane in lanes):
            raise NotServingError("not every assigned model is serving", retry_after_s=1.0)
        return _json({"ready": True})

    def _model(self, request: Request, route: Route) -> Reply:
        lane = self.lanes.get(route.model)
        if lane is None:
            raise HttpError(404, f"model {route.model[:80]!r} is not known to this device")
        if route.action in ACTIONS:
            only(request, "POST")
            live = lane.serving.live
            if live is not None and isinstance(live.loaded, Proven):
                raise HttpError(
                    404, f"model {route.model!r} runs in applications alone ([serve] workers)"
                )
            raise NotServingError(f"model {route.model!r} is not serving", retry_after_s=1.0)
        if route.action not in ("metadata", "ready"):
            raise HttpError(404, f"no such path: {request.path[:200]}")
        only(request, "GET")
        live = _live(lane)
        check_version(route, live.ref.version)
        if route.action == "ready":
            return _json({"name": route.model, "ready": True})
        manifest = live.loaded.manifest
        label = oip.Label(route.model, live.ref.version, live.slot)
        platform = f"{manifest.engine}_{manifest.target}"
        return Reply(200, oip.metadata(label, platform, live.loaded.contract, live.ref.compose))


def _live(lane: Lane) -> Live:
    live = lane.serving.live
    if live is None:
        raise NotServingError(f"model {lane.serving.model!r} is not serving", retry_after_s=1.0)
    return live


def _json(value: object) -> Reply:
    return Reply(200, msgspec.json.encode(value))
