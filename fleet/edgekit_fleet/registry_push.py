"""Push side of the OCI distribution API (distribution-spec v1.1, *Push*).

Monolithic (POST with a digest, or POST then PUT), chunked (POST, PATCH…, PUT), and cross-repository
mount. Bodies are streamed to disk, never held.
"""

from __future__ import annotations

import re

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from edgekit.contracts import digest, oci
from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit_fleet.artifacts import ArtifactStore, BlobWriter, check_repository
from edgekit_fleet.errors import MissingBlobError, NotFoundError
from edgekit_fleet.registry_api import VERSION, oci_error
from edgekit_fleet.uploads import Uploads


def refusal(exc: BadInputError | ResourceError, code: str) -> Response:
    """The spec's form of an error of ours."""
    if isinstance(exc, ResourceError):
        return oci_error(507, "TOOMANYREQUESTS", exc.message)
    if isinstance(exc, NotFoundError):
        return oci_error(404, "BLOB_UPLOAD_UNKNOWN", exc.message)
    return oci_error(400, code, exc.message)


def _created(name: str, kind: str, found: str) -> Response:
    headers = {"Location": f"/v2/{name}/{kind}/{found}", "Docker-Content-Digest": found}
    return Response(status_code=201, headers=VERSION | headers)


def _progress(status: int, name: str, session: str, size: int) -> Response:
    """State of a session; an empty one says ``0-0``, as Docker's registry does."""
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{session}",
        "Docker-Upload-UUID": session,
        "Range": f"0-{max(0, size - 1)}",
    }
    return Response(status_code=status, headers=VERSION | headers)


async def _receive(request: Request, writer: BlobWriter) -> None:
    async for chunk in request.stream():
        if chunk:
            await run_in_threadpool(writer.write, chunk)


def _is_next(request: Request, writer: BlobWriter) -> bool:
    """Whether the chunk continues where the session stands (``Content-Range: first-last``)."""
    header = request.headers.get("content-range")
    if header is None:
        return True
    match = re.fullmatch(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/\S+)?", header.strip())
    return match is not None and int(match[1]) == writer.size


def add(routes: APIRouter, store: ArtifactStore) -> None:
    """Add the push routes."""
    uploads = Uploads(store)
    _add_start(routes, store, uploads)
    _add_sessions(routes, uploads)
    _add_finish(routes, store, uploads)


def _add_start(routes: APIRouter, store: ArtifactStore, uploads: Uploads) -> None:

    @routes.post("/{name:path}/blobs/uploads/", summary="Start or finish an upload", tags=["push"])
    async def start(request: Request, name: str) -> Response:
        query = request.query_params
        try:
            check_repository(name)
            mount = query.get("mount")
            if mount is not None and store.size(digest.parse(mount)) is not None:
                return _created(name, "blobs", mount)
            session = await run_in_threadpool(uploads.start, name)
            expected = query.get("digest")
            if expected is None:
                return _progress(202, name, session, 0)
            with uploads.use(name, session) as writer:
                await _receive(request, writer)
                await run_in_threadpool(writer.finish, digest.parse(expected))
        except (BadInputError, ResourceError) as exc:
            return refusal(exc, "DIGEST_INVALID")
        uploads.end(session)
        return _created(name, "blobs", expected)


def _add_sessions(routes: APIRouter, uploads: Uploads) -> None:
    path = "/{name:path}/blobs/uploads/{session}"

    @routes.patch(path, summary="Push a chunk", tags=["push"])
    async def chunk(request: Request, name: str, session: str) -> Response:
        try:
            writer = uploads.find(name, session).writer
            if not _is_next(request, writer):
                return _progress(416, name, session, writer.size)
            with uploads.use(name, session):
                await _receive(request, writer)
        except (BadInputError, ResourceError) as exc:
            return refusal(exc, "BLOB_UPLOAD_INVALID")
        return _progress(202, name, session, writer.size)

    @routes.get(path, summary="Where an upload stands", tags=["push"])
    def state(name: str, session: str) -> Response:
        try:
            return _progress(204, name, session, uploads.find(name, session).writer.size)
        except NotFoundError as exc:
            return refusal(exc, "BLOB_UPLOAD_UNKNOWN")

    @routes.delete(path, summary="Cancel an upload", tags=["push"])
    def cancel(name: str, session: str) -> Response:
        try:
            uploads.find(name, session)
        except NotFoundError as exc:
            return refusal(exc, "BLOB_UPLOAD_UNKNOWN")
        uploads.end(session)
        return Response(status_code=204, headers=VERSION)


def _add_finish(routes: APIRouter, store: ArtifactStore, uploads: Uploads) -> None:
    @routes.put("/{name:path}/blobs/uploads/{session}", summary="Finish an upload", tags=["push"])
    async def finish(request: Request, name: str, session: str) -> Response:
        try:
            expected = digest.parse(request.query_params.get("digest", ""))
            writer = uploads.find(name, session).writer
            if not _is_next(request, writer):
                return _progress(416, name, session, writer.size)
            with uploads.use(name, session):
                await _receive(request, writer)
                await run_in_threadpool(writer.finish, expected)
        except (BadInputError, ResourceError) as exc:
            return refusal(exc, "DIGEST_INVALID")
        uploads.end(session)
        return _created(name, "blobs", expected)

    @routes.put("/{name:path}/manifests/{reference}", summary="Push a manifest", tags=["push"])
    async def put_manifest(request: Request, name: str, reference: str) -> Response:
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > OCI_MANIFEST_BYTES_MAX:
                return oci_error(413, "SIZE_INVALID", f"over {OCI_MANIFEST_BYTES_MAX} bytes")
        try:
            found = await run_in_threadpool(store.put_manifest, name, reference, bytes(raw))
        except (BadInputError, ResourceError) as exc:
            missing = isinstance(exc, MissingBlobError)
            return refusal(exc, "MANIFEST_BLOB_UNKNOWN" if missing else "MANIFEST_INVALID")
        answer = _created(name, "manifests", found)
        manifest = oci.decode_any(bytes(raw), "manifest")
        if isinstance(manifest, oci.Manifest) and isinstance(manifest.subject, oci.Descriptor):
            answer.headers["OCI-Subject"] = manifest.subject.digest  # says that we list referrers
        return answer
