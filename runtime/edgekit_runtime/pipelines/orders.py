"""What agent and pipeline process say to each other, a line of JSON each."""

from __future__ import annotations

import msgspec

from edgekit_runtime.pipelines.spec import PipelineSpec

ORDER_BYTES_MAX = 1024 * 1024
STOP = b"stop\n"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    device: str
    socket: str  # the agent's endpoint
    state_dir: str
    spec: PipelineSpec


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the process's log."""

    level: str
    text: str
