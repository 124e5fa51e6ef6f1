"""Errors that the HTTP API tells apart; all are bad input to everyone else."""

from __future__ import annotations

from edgekit.contracts.errors import BadInputError


class NotFoundError(BadInputError):
    """The thing named in the path does not exist (404)."""


class MissingBlobError(BadInputError):
    """A manifest refers to a blob that was not pushed (MANIFEST_BLOB_UNKNOWN)."""


class RefusedError(BadInputError):
    """Whoever asks may not (403)."""
