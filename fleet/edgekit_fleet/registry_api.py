"""Pull side of the OCI distribution API (distribution-spec v1.1): Range, ETag, tags, referrers.

Errors have the spec's form: ``{"errors": [{"code", "message"}]}``. Bodies are streamed, never held.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.oci import INDEX_MEDIA_TYPE
from edgekit_fleet.artifacts import ArtifactStore, check_repository, parse_range

VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


def oci_error(status: int, code: str, message: str, **headers: str) -> Response:
    """An error in the spec's form."""
    return Response(
        codec.encode({"errors": [{"code": code, "message": message}]}),
        status_code=status,
        media_type="application/json",
        headers=VERSION | {name.replace("_", "-"): value for name, value in headers.items()},
    )


_FOREVER = "public, max-age=31536000, immutable"  # the name is the content
_ASK_AGAIN = "no-cache"  # a tag may move; the ETag makes asking cheap


def _serve(
    request: Request, store: ArtifactStore, blob: str, *, size: int, media_type: str, cache: str
) -> Response:
    """Answer GET or HEAD for a blob, whole or in part."""
    etag = f'"{blob}"'
    headers = VERSION | {
        "Docker-Content-Digest": blob,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": cache,
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    status, part = 200, None
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", etag) == etag:
        try:
            part = parse_range(wanted, size)
        except ValueError as exc:
            return oci_error(416, "SIZE_INVALID", str(exc), Content_Range=f"bytes */{size}")
    if part is not None:
        status = 206
        headers["Content-Range"] = f"bytes {part[0]}-{part[1]}/{size}"
    first, last = part or (0, size - 1)
    headers["Content-Length"] = str(last - first + 1)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    body = store.stream(blob, first, last) if size else ()
    return StreamingResponse(body, status_code=status, headers=headers, media_type=media_type)


def router(store: ArtifactStore) -> APIRouter:
    """The pull routes under ``/v2``; `registry_push.add` adds the others."""
    routes = APIRouter(prefix="/v2", tags=["artifacts"])
    _add_pull(routes, store)
    _add_tags(routes, store)
    _add_referrers(routes, store)
    return routes


def _add_pull(routes: APIRouter, store: ArtifactStore) -> None:

    @routes.head("/", include_in_schema=False)
    @routes.get("/", summary="API version check")
    def version() -> Response:
        return Response(b"{}", media_type="application/json", headers=VERSION)

    @routes.head("/{name:path}/manifests/{reference}", include_in_schema=False)
    @routes.get("/{name:path}/manifests/{reference}", summary="Pull a manifest")
    def get_manifest(request: Request, name: str, reference: str) -> Response:
        try:
            found = store.resolve(name, reference)
        except BadInputError as exc:
            return oci_error(404, "NAME_INVALID", exc.message)
        if found is None:
            return oci_error(404, "MANIFEST_UNKNOWN", f"{name}: no manifest {reference[:80]}")
        blob, media_type = found
        size = store.size(blob)
        if size is None:
            return oci_error(404, "MANIFEST_UNKNOWN", f"{name}: the bytes of {blob} are gone")
        cache = _FOREVER if reference == blob else _ASK_AGAIN
        return _serve(request, store, blob, size=size, media_type=media_type, cache=cache)

    @routes.head("/{name:path}/blobs/{reference}", include_in_schema=False)
    @routes.get("/{name:path}/blobs/{reference}", summary="Pull a blob")
    def get_blob(request: Request, name: str, reference: str) -> Response:
        try:
            check_repository(name)
            size = store.size(reference)
        except BadInputError as exc:
            return oci_error(404, "DIGEST_INVALID", exc.message)
        if size is None:
            return oci_error(404, "BLOB_UNKNOWN", f"no blob {reference}")
        kind = "application/octet-stream"
        return _serve(request, store, reference, size=size, media_type=kind, cache=_FOREVER)


def _add_tags(routes: APIRouter, store: ArtifactStore) -> None:

    @routes.get("/{name:path}/tags/list", summary="List tags")
    def list_tags(name: str, n: int | None = None, last: str | None = None) -> Response:
        try:
            tags = store.tags(name)
        except BadInputError as exc:
            return oci_error(404, "NAME_INVALID", exc.message)
        if tags is None:
            return oci_error(404, "NAME_UNKNOWN", f"no repository {name}")
        rest = [tag for tag in tags if last is None or tag > last]
        page = rest if n is None else rest[: max(0, n)]
        headers = dict(VERSION)
        if page and len(page) < len(rest):
            headers["Link"] = f'</v2/{name}/tags/list?n={n}&last={page[-1]}>; rel="next"'
        body = codec.encode({"name": name, "tags": page})
        return Response(body, media_type="application/json", headers=headers)


def _add_referrers(routes: APIRouter, store: ArtifactStore) -> None:

    @routes.get("/{name:path}/referrers/{reference}", summary="List what refers to a manifest")
    def list_referrers(
        name: str,
        reference: str,
        artifact_type: Annotated[str | None, Query(alias="artifactType")] = None,
    ) -> Response:
        try:
            found = store.referrers(name, reference, artifact_type)
        except BadInputError as exc:
            return oci_error(404, "NAME_INVALID", exc.message)
        filtered = {"OCI-Filters-Applied": "artifactType"} if artifact_type is not None else {}
        headers = VERSION | filtered | {"Cache-Control": _ASK_AGAIN}
        return Response(codec.encode(found), media_type=INDEX_MEDIA_TYPE, headers=headers)
