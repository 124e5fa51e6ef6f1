"""Attempts to prepare a candidate; in memory, so that a restart tries anew."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edgekit.contracts.backoff import Backoff
from edgekit_runtime.ports import Clock, Fetcher

PAUSE_S = 2.0  # between looks whether the container engine is back


class _Attempts(msgspec.Struct):
    count: int = 0
    due: float = 0.0
    refetched: bool = False
    backoff: Backoff = msgspec.field(default_factory=lambda: Backoff(base_s=1.0, cap_s=60.0))


class Downloads:
    """By digest of what is fetched."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._attempts: dict[str, _Attempts] = {}

    def forget(self, digest: str) -> None:
        """Begin anew."""
        self._attempts.pop(digest, None)

    def failed(self, digest: str) -> int:
        """Note a failed attempt and when the next is due; returns how many there were."""
        attempts = self._attempts.setdefault(digest, _Attempts())
        attempts.count += 1
        attempts.due = self._clock.monotonic() + attempts.backoff.next_delay_s()
        return attempts.count

    def pause(self, digest: str) -> None:
        """Wait a little, for what is nobody's failure and counts as no attempt."""
        attempts = self._attempts.setdefault(digest, _Attempts())
        attempts.due = self._clock.monotonic() + PAUSE_S

    def waiting(self, digest: str) -> bool:
        """Whether the next attempt is not due yet."""
        attempts = self._attempts.get(digest)
        return attempts is not None and attempts.due > self._clock.monotonic()

    def again(self, digest: str) -> bool:
        """Whether what was fetched may be fetched once more; True only the first time."""
        attempts = self._attempts.setdefault(digest, _Attempts())
        first, attempts.refetched = not attempts.refetched, True
        return first


class Meter(msgspec.Struct):
    """Bytes transferred; written by the job thread, read by the control thread."""

    count: int = 0


class Metered:
    """A fetcher that counts, whether what it fetches arrives whole or not."""

    def __init__(self, fetcher: Fetcher, meter: Meter) -> None:
        self._fetcher, self._meter = fetcher, meter

    def manifest(self, repository: str, digest: str) -> bytes:
        """See `Fetcher.manifest`."""
        raw = self._fetcher.manifest(repository, digest)
        self._meter.count += len(raw)
        return raw

    def referrers(self, repository: str, digest: str) -> bytes | None:
        """See `Fetcher.referrers`."""
        raw = self._fetcher.referrers(repository, digest)
        self._meter.count += len(raw or b"")
        return raw

    def blob(self, repository: str, digest: str, offset: int) -> Iterator[bytes]:
        """See `Fetcher.blob`."""
        for chunk in self._fetcher.blob(repository, digest, offset):
            self._meter.count += len(chunk)
            yield chunk
