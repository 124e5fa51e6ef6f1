"""Store-and-forward buffer: a segment log per lane, the only queue for telemetry."""

from edgekit_runtime.spool.index import Frame
from edgekit_runtime.spool.log import Spool, SpoolLimits

__all__ = ["Frame", "Spool", "SpoolLimits"]
