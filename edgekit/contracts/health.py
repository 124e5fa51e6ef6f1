"""How a device is, in the heartbeat (docs/protocol.md §4)."""

from __future__ import annotations

import msgspec


class SpoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """Store-and-forward buffer figures."""

    bytes_used: int = 0
    frames_unacked: int = 0
    frames_evicted: int = 0
    inferences_evicted: int = 0
    damaged: int = 0  # damaged places found and stepped over


class PipelineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one pipeline did since its table was last changed, all reasons and sinks added up."""

    state: str  # starting running waiting away ended stopped
    starts: int = 0  # of its process
    received: int = 0
    inferred: int = 0
    refused: int = 0
    dropped: int = 0
    delivered: int = 0  # answers, over all sinks
    failed: int = 0  # answers that a sink gave up or had no room for


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """How the device is; None where it does not tell."""

    cpu_busy: float | None = None  # share of all processors since the last report
    load_1m: float | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    disk_free_bytes: int | None = None  # where the state folder lies
    temperatures_c: dict[str, float] = {}  # by thermal zone
    throttled: bool | None = None  # the processor is slowed down, for heat or supply
    throttled_why: str = ""  # who says so, or why nobody knows
    workers_rss_bytes: dict[str, int] = {}  # resident memory of what holds a model, by model


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Resource readings of the agent; None where it could not be read."""

    pid: int | None = None
    rss_bytes: int | None = None
    start_to_first_inference_s: float | None = None
    inferences: int = 0  # since the storage epoch began
    workers_ended: int = 0  # crashed, stuck or over their memory limit, since the agent started
    spool: SpoolReport = SpoolReport()
    pipelines: dict[str, PipelineReport] = {}  # by name; a handful at most
    resources: Resources = Resources()
