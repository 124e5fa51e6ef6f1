"""HTTP client of the fleet manager: one place that knows its URL, its errors and how to push."""

from __future__ import annotations

import os
from collections.abc import Callable
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
)
from edgekit.package import transfer
from edgekit.package.reference import Reference
from edgekit.package.registry import Registry
from edgekit.package.transfer import Moved

MANAGER_DEFAULT = "http://127.0.0.1:8470"
MANAGER_ENV = "EDGEKIT_MANAGER"
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class _Problem(msgspec.Struct):
    error: str = ""
    hint: str | None = None


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that devices run."""

    target: str
    digest: str
    version: str
    devices: int
    repository: str | None


def manager_url(given: str | None) -> str:
    """The manager to talk to: option, environment, default.

    Raises:
        UsageError: not an http(s) URL.
    """
    url = given or os.environ.get(MANAGER_ENV) or MANAGER_DEFAULT
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"manager {url!r} is not a URL", hint=f"for example {MANAGER_DEFAULT}")
    return url.rstrip("/")


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

    def _registry(self, repository: str, digest: str | None = None) -> Registry:
        self.request("GET", "/v2/")  # says best what is wrong when the manager is not there
        scheme, _, host = self.url.partition("://")
        return Registry(Reference(scheme, host, repository, None, digest), environ={})

    def push_bundle(
        self,
        layout: oci.LayoutReader,
        repository: str,
        manifest_digest: str,
        progress: Callable[[Moved], None],
    ) -> None:
        """Push a bundle's blobs, those that are missing, then its manifest.

        Args:
            layout: where the bundle lies.
            repository: where it goes.
            manifest_digest: which bundle.
            progress: called with each blob.

        Raises:
            BadInputError: a blob is missing or altered; nothing refers to what was pushed.
        """
        with self._registry(repository) as registry:
            transfer.push(registry, layout, manifest_digest, [manifest_digest], progress)

    def push(
        self, layout: oci.LayoutReader, repository: str, manifest_digest: str, names: list[str]
    ) -> None:
        """Push any artifact under ``names``; raises as `push_bundle`."""
        with self._registry(repository) as registry:
            transfer.push(registry, layout, manifest_digest, names, lambda _: None)

    def pull_bundle(self, repository: str, manifest_digest: str, layout: Path) -> None:
        """Pull a bundle into a layout folder.

        Raises:
            BadInputError: the manager does not hold it. UnavailableError: it is not there.
        """
        with self._registry(repository, manifest_digest) as registry:
            transfer.pull(registry, layout, manifest_digest.partition(":")[2], lambda _: None)

    def field(self, model: str) -> list[Held]:
        """Which bundles of ``model`` devices run, the most frequent of a target first."""
        raw = self.request("GET", f"/api/v1/models/{quote(model, safe='')}/field").content
        return codec.decode(list[Held], raw, what=f"answer of {self.url}")
