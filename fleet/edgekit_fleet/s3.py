"""Artifacts in an S3 bucket, or anything that speaks S3 (extra ``s3``).

Credentials come from where every S3 client looks for them: ``AWS_ACCESS_KEY_ID`` and its kin, or
the machine's role. The bucket must exist; a prefix keeps several managers apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore import exceptions

from edgekit.contracts.errors import (
    BadInputError,
    EdgekitError,
    ResourceError,
    UnavailableError,
    UsageError,
)
from edgekit_fleet.objects import CHUNK_BYTES

if TYPE_CHECKING:
    from obstore.store import S3Store

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ANSWER_S_MAX = timedelta(seconds=30)  # without an answer; the client tries again within _TRY_S_MAX
_TRY_S_MAX = timedelta(seconds=20)
_TRIES_MAX = 2
_HINT = "check the bucket's name, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"


def parse(url: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket/prefix``.

    Raises:
        UsageError: it is none.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or parts.query:
        raise UsageError(f"{url!r} is no bucket", hint="for example s3://models/edgekit")
    return parts.netloc, parts.path.strip("/")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (exceptions.UnauthenticatedError, exceptions.PermissionDeniedError) as exc:
        raise BadInputError(f"{what}: not allowed", hint=_HINT) from exc
    except (FileNotFoundError, exceptions.NotFoundError) as exc:
        raise BadInputError(f"{what}: is not there", hint=_HINT) from exc
    except (exceptions.BaseError, OSError, ValueError) as exc:
        text = " ".join(str(exc).split())
        if "NoSuchBucket" in text or "403 Forbidden" in text:  # the client has no class for these
            raise BadInputError(f"{what}: no such bucket, or not allowed", hint=_HINT) from exc
        first = text.partition(" - ")[2] or text
        raise UnavailableError(f"{what}: {first[:300]}", hint="is the endpoint reachable?") from exc


@dataclass(frozen=True)
class S3Objects:
    """`edgekit_fleet.objects.Objects` in a bucket; use `S3Objects.open`."""

    store: S3Store
    place: str  # for messages

    @classmethod
    def open(cls, url: str, endpoint: str | None = None) -> S3Objects:
        """Connect and look into the bucket.

        Args:
            url: ``s3://bucket/prefix``.
            endpoint: of a server that is not Amazon's.

        Raises:
            UsageError: malformed.
            BadInputError: no such bucket, or not allowed.
            UnavailableError: not reachable.
        """
        from obstore.store import S3Store  # noqa: PLC0415 - reads the environment

        bucket, prefix = parse(url)
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise UsageError(f"S3 endpoint {endpoint!r} is no URL")
        with _translated(url):
            store = S3Store(
                bucket,
                prefix=prefix or None,
                endpoint=endpoint,
                client_options={
                    "allow_http": bool(endpoint and endpoint.startswith("http://")),
                    "timeout": _ANSWER_S_MAX,
                },
                retry_config={"max_retries": _TRIES_MAX, "retry_timeout": _TRY_S_MAX},
            )
            obstore.list_with_delimiter(store)
        return cls(store, url.rstrip("/"))

    def size(self, key: str) -> int | None:
        """See `Objects.size`."""
        try:
            with self._doing(key):
                return int(obstore.head(self.store, key)["size"])
        except _AbsentError:
            return None

    def read(self, key: str, bytes_max: int) -> bytes | None:
        """See `Objects.read`."""
        try:
            with self._doing(key):
                found = obstore.get(self.store, key)
                if found.meta["size"] > bytes_max:
                    raise ResourceError(f"{key}: {found.meta['size']} bytes exceed {bytes_max}")
                return bytes(found.bytes())
        except _AbsentError:
            return None

    def stream(self, key: str, first: int, last: int) -> Iterator[bytes]:
        """See `Objects.stream`."""
        with self._doing(key):
            found = obstore.get(self.store, key, options={"range": (first, last + 1)})
            for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    def write(self, key: str, data: bytes) -> None:
        """See `Objects.write`."""
        with self._doing(key):
            obstore.put(self.store, key, data)

    def adopt(self, key: str, path: Path) -> None:
        """See `Objects.adopt`; large files go in parts."""
        with self._doing(key):
            obstore.put(self.store, key, path)
        path.unlink()

    def names(self, folder: str) -> list[str] | None:
        """See `Objects.names`."""
        with self._doing(folder):
            listed = obstore.list_with_delimiter(self.store, folder)
        paths = [entry["path"] for entry in listed["objects"]] + list(listed["common_prefixes"])
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths) or None

    @contextmanager
    def _doing(self, key: str) -> Iterator[None]:
        try:
            with _translated(f"{self.place}/{key}"):
                yield
        except BadInputError as exc:
            if isinstance(exc.__cause__, (FileNotFoundError, exceptions.NotFoundError)):
                raise _AbsentError(exc.message) from exc
            # A key that lost its rights is the operator's to mend, not the device's to give up on.
            raise UnavailableError(exc.message, hint=exc.hint) from exc


class _AbsentError(EdgekitError):
    """No such object."""
