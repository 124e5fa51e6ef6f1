"""A fetcher over a layout folder."""

from __future__ import annotations

from edgekit.contracts import codec, delta, oci
from edgekit.contracts import digest as digests
from edgekit.contracts.errors import UnavailableError
from edgekit.contracts.oci import LayoutReader


class LocalFetcher:
    """Serves a layout, in small chunks; can end early or send rubbish."""

    def __init__(self, root, *, cut: int | None = None, flip: bool = False) -> None:
        self._blobs = LayoutReader(root)
        self._cut = cut
        self._flip = flip
        self.sent = 0

    def referrers(self, _repository, digest):
        """As a server with the API: whatever manifest of the layout has this subject."""
        found = []
        for path in sorted((self._blobs.root / "blobs" / "sha256").iterdir()):
            raw = path.read_bytes()
            if delta.ARTIFACT_TYPE.encode() in raw:
                manifest = codec.decode(oci.Manifest, raw, what="referrer")
                if manifest.subject.digest == digest:
                    found.append(
                        oci.Descriptor(
                            media_type=manifest.media_type,
                            digest=digests.of_bytes(raw),
                            size=len(raw),
                            artifact_type=manifest.artifact_type,
                            annotations=manifest.annotations,
                        )
                    )
        raw = codec.encode(oci.Index(manifests=tuple(found)))
        self.sent += len(raw)
        return raw

    def manifest(self, _repository, digest):
        data = self._blobs.blob_path(digest).read_bytes()
        self.sent += len(data)
        return data

    def blob(self, _repository, digest, offset):
        data = self._blobs.blob_path(digest).read_bytes()[offset:]
        if self._flip:
            data = bytes([data[0] ^ 1]) + data[1:]
        for start in range(0, len(data), 100):
            if self._cut is not None and self.sent >= self._cut:
                raise UnavailableError("connection lost")
            self.sent += len(data[start : start + 100])
            yield data[start : start + 100]
