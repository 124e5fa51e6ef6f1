"""Trust in what arrives: by digest for now; signatures plug in behind the same port."""

from __future__ import annotations

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import BadInputError


class DigestVerifier:
    """`edgekit_runtime.ports.Verifier` that trusts the broker for *who* and SHA-256 for *what*."""

    def desired(self, payload: bytes, signature: str | None) -> None:
        """Accepts any desired state: the broker's access rules say who may write it."""

    def manifest(self, digest: str, raw: bytes) -> None:
        """See `Verifier.manifest`."""
        if digests.of_bytes(raw) != digest:
            raise BadInputError(
                f"manifest {digests.short(digest)}: content does not match its digest",
                hint="the artifact server or the network altered it",
            )
