"""What the spool must remember beside its segments: identity, acknowledgements and exact totals."""

from __future__ import annotations

import msgspec

from edgekit.contracts.messages import Tombstone


class Eviction(msgspec.Struct, frozen=True, kw_only=True):
    """An eviction in progress, written before the segment goes, cleared when lane 0 tells of it.

    Finding one at start means the power went in between; `Spool.open` finishes it, once.
    """

    lane: int
    segment: str
    tombstones: tuple[Tombstone, ...]


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Persisted in two copies. ``acked`` is keyed ``epoch/boot/lane``.

    Totals and intervals change in the same write, so that a frame is never added twice.
    """

    schema: int = 1
    epoch: int
    boot: int
    acked: dict[str, tuple[tuple[int, int], ...]] = {}
    acked_frames: int = 0
    acked_inferences: int = 0
    evicted_frames: int = 0
    evicted_records: int = 0
    evicted_inferences: int = 0
    damaged: int = 0
    pending: Eviction | None = None
    retired_inferences: int = 0  # counted in regions whose file is gone
    retired_regions: tuple[str, ...] = ()  # added above, file perhaps not yet removed
