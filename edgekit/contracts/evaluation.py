"""What ``python -m edgekit_runtime.evaluate`` prints: facts of one bundle run over one data set.

The builder and the fleet read it; the code that produced it is the code that ships to devices.
"""

from __future__ import annotations

import msgspec

from edgekit.contracts.verdict import Verdict


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Wall time of single-sample inferences after warm-up, in milliseconds."""

    p50_ms: float
    p95_ms: float
    runs: int
    threads: int


class NodeTime(msgspec.Struct, frozen=True, kw_only=True):
    """Mean microseconds of one operator in a run, under the name that the engine has for it."""

    name: str
    op: str
    us: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Figures that were not measured are None."""

    schema: int = 1
    bundle: str  # digest of the OCI manifest
    target: str
    n: int  # samples run
    quality: float | None = None  # of the contract's metric, when the data carries what it needs
    metric: str = ""
    golden: Verdict | None = None
    latency: Latency | None = None
    load_s: float
    rss_peak_bytes: int
    engine: str
    engine_version: str
    engine_facts: dict[str, str] = {}  # how the engine really runs it, e.g. its precision
    machine: str
    isa: tuple[str, ...] = ()
