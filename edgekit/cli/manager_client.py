"""HTTP client of the fleet manager: one place that knows its URL, its errors and how to push."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
from typing_extensions import Self

from edgekit.contracts import codec, oci
from edgekit.contracts.errors import (
    BadInputError,
    EdgekitError,
    ResourceError,
    UnavailableError,
    UsageError,
    translate_os_errors,
)
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX

MANAGER_DEFAULT = "http://127.0.0.1:8470"
MANAGER_ENV = "EDGEKIT_MANAGER"
CHUNK_BYTES = 1024 * 1024
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class _Problem(msgspec.Struct):
    error: str = ""
    hint: str | None = None


def manager_url(given: str | None) -> str:
    """The manager to talk to: option, environment, default.

    Raises:
        UsageError: not an http(s) URL.
    """
    url = given or os.environ.get(MANAGER_ENV) or MANAGER_DEFAULT
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"manager {url!r} is not a URL", hint=f"for example {MANAGER_DEFAULT}")
    return url.rstrip("/")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _refusal(response: httpx.Response) -> EdgekitError:
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
        errors = msgspec.json.decode(response.content).get("errors") or [{}]
        message = problem.error or errors[0].get("message", "")
    except (msgspec.MsgspecError, AttributeError, IndexError):
        problem, message = _Problem(), ""
    message = message or f"{response.request.url}: HTTP status {response.status_code}"
    if response.status_code == 507:
        return ResourceError(message, hint=problem.hint)
    if response.status_code >= 500:
        return UnavailableError(message, hint=problem.hint or "see the manager's log")
    return BadInputError(message, hint=problem.hint)


class ManagerClient:
    """A connection to one manager; use as a context manager."""

    def __init__(self, url: str | None) -> None:
        self.url = manager_url(url)
        self._http = httpx.Client(base_url=self.url, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; any status below 400 and 404 of a HEAD are returned.

        Raises:
            UnavailableError: the manager cannot be reached. Others: as it refused.
        """
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as exc:
            raise UnavailableError(
                f"manager {self.url} is not reachable: {exc or type(exc).__name__}",
                hint="start it with `edgekit fleet up`, or name another with --manager or "
                f"{MANAGER_ENV}",
            ) from exc
        if response.status_code >= 400 and not (method == "HEAD" and response.status_code == 404):
            raise _refusal(response)
        return response

    def get(self, path: str) -> Any:
        """Decoded JSON of a GET under ``/api/v1``."""
        raw = self.request("GET", f"/api/v1{path}").content
        return codec.decode(object, raw, what=f"answer of {self.url}")

    def post(self, path: str, body: bytes = b"") -> tuple[int, Any]:
        """Status and decoded JSON of a POST under ``/api/v1``."""
        response = self.request("POST", f"/api/v1{path}", content=body)
        answer = codec.decode(object, response.content, what=f"answer of {self.url}")
        return response.status_code, answer

    def rollout(self, name: str) -> dict[str, Any]:
        """One rollout, in detail."""
        found: dict[str, Any] = self.get(f"/rollouts/{quote(name, safe='')}")
        return found

    def push_bundle(
        self,
        layout: oci.LayoutReader,
        repository: str,
        manifest_digest: str,
        progress: Callable[[str, int, bool], None],
    ) -> None:
        """Push a bundle's blobs, those that are missing, then its manifest.

        Args:
            layout: where the bundle lies.
            repository: where it goes.
            manifest_digest: which bundle.
            progress: called with digest, bytes and whether the blob had to be sent.

        Raises:
            BadInputError: a blob is missing or altered; nothing refers to what was pushed.
        """
        manifest = layout.manifest(manifest_digest)
        for descriptor in (manifest.config, *manifest.layers):
            path = layout.verify_blob(descriptor)
            where = f"/v2/{repository}/blobs/{descriptor.digest}"
            missing = self.request("HEAD", where).status_code == 404
            if missing:
                with translate_os_errors("read", path):
                    self.request(
                        "POST",
                        f"/v2/{repository}/blobs/uploads/",
                        params={"digest": descriptor.digest},
                        content=_chunks(path),
                        headers={"Content-Length": str(descriptor.size)},
                        timeout=httpx.Timeout(300.0, connect=5.0),
                    )
            progress(descriptor.digest, descriptor.size, missing)
        raw = layout.read_blob(manifest_digest, bytes_max=OCI_MANIFEST_BYTES_MAX)
        headers = {"Content-Type": manifest.media_type}
        where = f"/v2/{repository}/manifests/{manifest_digest}"
        self.request("PUT", where, content=raw, headers=headers)
