"""OCI distribution API (distribution-spec v1.1): pull with Range, push in one request.

Errors have the spec's form: ``{"errors": [{"code", "message"}]}``. Bodies are streamed, never held.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit_fleet.artifacts import ArtifactStore, BlobWriter, check_repository, parse_range
from edgekit_fleet.errors import MissingBlobError

CHUNK_BYTES = 1024 * 1024
_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


def oci_error(status: int, code: str, message: str, **headers: str) -> Response:
    """An error in the spec's form."""
    return Response(
        codec.encode({"errors": [{"code": code, "message": message}]}),
        status_code=status,
        media_type="application/json",
        headers=_VERSION | {name.replace("_", "-"): value for name, value in headers.items()},
    )


def _chunks(path: Path, first: int, last: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        left = last - first + 1
        while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def _serve(request: Request, path: Path, blob: str, media_type: str) -> Response:
    """Answer GET or HEAD for the verified file ``path``, whole or in part."""
    size = path.stat().st_size
    etag = f'"{blob}"'
    headers = _VERSION | {
        "Docker-Content-Digest": blob,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "public, max-age=31536000, immutable",  # the name is the content
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
    return StreamingResponse(
        _chunks(path, first, last), status_code=status, headers=headers, media_type=media_type
    )


async def _receive(request: Request, store: ArtifactStore, expected: str) -> None:
    writer = await run_in_threadpool(BlobWriter, store, expected)
    try:
        async for chunk in request.stream():
            await run_in_threadpool(writer.write, chunk)
        await run_in_threadpool(writer.finish)
    finally:
        writer.discard()


def _refusal(exc: BadInputError | ResourceError, code: str) -> Response:
    if isinstance(exc, ResourceError):
        return oci_error(507, "TOOMANYREQUESTS", exc.message)
    return oci_error(400, code, exc.message)


def router(store: ArtifactStore) -> APIRouter:
    """The routes under ``/v2``."""
    routes = APIRouter(prefix="/v2", tags=["artifacts"])
    _add_pull(routes, store)
    _add_push(routes, store)
    return routes


def _add_pull(routes: APIRouter, store: ArtifactStore) -> None:

    @routes.head("/", include_in_schema=False)
    @routes.get("/", summary="API version check")
    def version() -> Response:
        return Response(b"{}", media_type="application/json", headers=_VERSION)

    @routes.head("/{name:path}/manifests/{reference}", include_in_schema=False)
    @routes.get("/{name:path}/manifests/{reference}", summary="Pull a manifest")
    def get_manifest(request: Request, name: str, reference: str) -> Response:
        try:
            found = store.resolve(name, reference)
        except BadInputError as exc:
            return oci_error(404, "NAME_INVALID", exc.message)
        if found is None:
            return oci_error(404, "MANIFEST_UNKNOWN", f"{name}: no manifest {reference[:80]}")
        return _serve(request, store.blob_path(found[0]), *found)

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
        path = store.blob_path(reference)
        return _serve(request, path, reference, "application/octet-stream")


def _add_push(routes: APIRouter, store: ArtifactStore) -> None:
    @routes.post("/{name:path}/blobs/uploads/", summary="Push a blob in one request", tags=["push"])
    async def post_blob(request: Request, name: str) -> Response:
        expected = request.query_params.get("digest")
        if expected is None:
            return oci_error(
                400, "UNSUPPORTED", "only single-request uploads: add ?digest=sha256:…"
            )
        try:
            check_repository(name)
            if store.size(digest.parse(expected)) is None:
                await _receive(request, store, expected)
        except (BadInputError, ResourceError) as exc:
            return _refusal(exc, "DIGEST_INVALID")
        headers = _VERSION | {
            "Location": f"/v2/{name}/blobs/{expected}",
            "Docker-Content-Digest": expected,
        }
        return Response(status_code=201, headers=headers)

    @routes.put("/{name:path}/manifests/{reference}", summary="Push a manifest", tags=["push"])
    async def put_manifest(request: Request, name: str, reference: str) -> Response:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > OCI_MANIFEST_BYTES_MAX:
                return oci_error(413, "SIZE_INVALID", f"over {OCI_MANIFEST_BYTES_MAX} bytes")
        try:
            found = await run_in_threadpool(store.put_manifest, name, reference, bytes(raw))
        except (BadInputError, ResourceError) as exc:
            missing = isinstance(exc, MissingBlobError)
            return _refusal(exc, "MANIFEST_BLOB_UNKNOWN" if missing else "MANIFEST_INVALID")
        headers = _VERSION | {
            "Location": f"/v2/{name}/manifests/{found}",
            "Docker-Content-Digest": found,
        }
        return Response(status_code=201, headers=headers)
