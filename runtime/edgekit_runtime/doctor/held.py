"""What the state folder says, read once for all checks; nothing is changed."""

from __future__ import annotations

import msgspec

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.frames import Lane
from edgekit.contracts.health import SpoolReport
from edgekit.contracts.messages import DeviceEvent, SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.record import NAME as RECORD
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.spool import Spool
from edgekit_runtime.twocopy import TwoCopy


class Held(msgspec.Struct, frozen=True):
    """Record, blobs and telemetry of one device; ``problem`` says why they could not be read."""

    record: DeploymentRecord
    blobs: LayoutReader
    spool: SpoolReport
    events: tuple[DeviceEvent, ...] = ()
    problem: str = ""

    @classmethod
    def read(cls, config: AgentConfig) -> Held:
        """What is there; an unreadable folder reads as an empty one with a ``problem``."""
        state, disk = config.device.state_dir, PosixDisk()
        record, report, problem = DeploymentRecord(), SpoolReport(), ""
        events: tuple[DeviceEvent, ...] = ()
        try:
            found = TwoCopy(disk, state, RECORD, DeploymentRecord).peek()
            record = found.value or record
            if found.broken:
                problem = "both copies of the deployment record are unreadable"
            spool = Spool.peek(disk, state / "spool", SystemClock())
            report = spool.report()
            told = spool.stored(Lane.AUDIT)
            events = tuple(event for event in told if isinstance(event, DeviceEvent))
        except EdgekitError as exc:
            problem = exc.message
        return cls(record, LayoutReader(state), report, events, problem)

    def refs(self) -> list[tuple[str, str, SlotRef]]:
        """(model, role, bundle) of everything that serves, could serve, or is coming."""
        return [
            (name, role, ref)
            for name, model in sorted(self.record.models.items())
            for role, ref in (
                ("active", model.active),
                ("fallback", model.fallback),
                ("candidate", model.candidate),
            )
            if ref is not None
        ]
