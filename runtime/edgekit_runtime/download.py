"""Artifact server over HTTP (OCI distribution API, read side), resumable with Range."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit.contracts.oci import INDEX_MEDIA_TYPE, MANIFEST_MEDIA_TYPE

CHUNK_BYTES = 256 * 1024
STALL_S_MAX = 30.0  # longer waits for a dead peer hold the one download slot


class _AbsentError(UnavailableError):
    """The server answers that it has no such thing (yet)."""


class HttpFetcher:
    """`edgekit_runtime.ports.Fetcher` on the standard library's HTTP client."""

    def __init__(self, base_url: str) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise BadInputError(f"artifacts_url {base_url[:200]!r} is not an http(s) address")
        self._base = base_url.rstrip("/")

    def manifest(self, repository: str, digest: str) -> bytes:
        """See `Fetcher.manifest`."""
        return self._document(f"/v2/{repository}/manifests/{digest}", MANIFEST_MEDIA_TYPE)

    def referrers(self, repository: str, digest: str) -> bytes | None:
        """See `Fetcher.referrers`; servers without the API keep the index under a tag."""
        base, tag = f"/v2/{repository}", digest.replace(":", "-")
        with suppress(_AbsentError):
            return self._document(f"{base}/referrers/{digest}", INDEX_MEDIA_TYPE)
        with suppress(_AbsentError):
            return self._document(f"{base}/manifests/{tag}", INDEX_MEDIA_TYPE)
        return None

    def _document(self, path: str, media_type: str) -> bytes:
        url, data = self._base + path, b""
        for chunk in self._get(url, {"Accept": media_type}, 0):
            data += chunk
            if len(data) > OCI_MANIFEST_BYTES_MAX:
                raise BadInputError(f"{url}: more than {OCI_MANIFEST_BYTES_MAX} bytes")
        return data

    def blob(self, repository: str, digest: str, offset: int) -> Iterator[bytes]:
        """See `Fetcher.blob`."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        yield from self._get(f"{self._base}/v2/{repository}/blobs/{digest}", headers, offset)

    def _get(self, url: str, headers: dict[str, str], offset: int) -> Iterator[bytes]:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - scheme checked above
        try:
            with urllib.request.urlopen(request, timeout=STALL_S_MAX) as response:  # noqa: S310
                # A server without Range sends everything again: skip what is here already.
                skip = offset if response.status != http.HTTPStatus.PARTIAL_CONTENT else 0
                while chunk := response.read(CHUNK_BYTES):
                    if skip >= len(chunk):
                        skip -= len(chunk)
                        continue
                    yield chunk[skip:]
                    skip = 0
        except urllib.error.HTTPError as exc:
            kind = _AbsentError if exc.code == http.HTTPStatus.NOT_FOUND else UnavailableError
            raise kind(f"{url}: HTTP {exc.code}") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise UnavailableError(f"{url}: {exc}") from exc
