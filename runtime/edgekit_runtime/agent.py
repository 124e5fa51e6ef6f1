"""The agent: one control thread that owns record, spool and link; the front's thread serves.

Messages and finished jobs only wake the control thread; it then re-reads what is. A failing disk or
broker never stops inference.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from edgekit import __version__
from edgekit.contracts import codec, composition, topics
from edgekit.contracts import digest as digests
from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.frames import Lane
from edgekit.contracts.health import Health
from edgekit.contracts.limits import DESIRED_BYTES_MAX, SMALL_MESSAGE_BYTES_MAX
from edgekit.contracts.messages import (
    Ack,
    Desired,
    DeviceEvent,
    DeviceProfile,
    Record,
    Reported,
    check_group,
    check_policy,
)
from edgekit_runtime import process_facts
from edgekit_runtime.counting import DRAIN_AT, Counting
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.errors import RuntimeUnfitError
from edgekit_runtime.golden_watch import GoldenWatch
from edgekit_runtime.ports import Clock, Link, Verifier
from edgekit_runtime.readings import Readings
from edgekit_runtime.self_update import RuntimeUpdater
from edgekit_runtime.spool import Spool
from edgekit_runtime.uplink import Uplink

if TYPE_CHECKING:
    from edgekit_runtime.pipelines.keeper import Keeper  # imported where there are pipelines

TICK_S = 0.1  # longest wait of the control thread: bounds how late a timer can be
MAINTAIN_S = 1.0  # acknowledgements are persisted this often; a lost one is only sent again
INBOX_MAX = 1024  # messages waiting for the control thread; the manager repeats what is dropped
SETTLE_S_MAX = 5.0  # after the start: then there is telemetry, whether anything serves or not
TROUBLE_S = 5.0  # between attempts after the disk refused
WINDOW_S_MIN = 0.2
log = logging.getLogger(__name__)


class Parts(msgspec.Struct, frozen=True):
    """Everything the agent is made of; built by `edgekit_runtime.wiring`."""

    clock: Clock
    link: Link
    spool: Spool
    counting: Counting
    deployer: Deployer
    golden: GoldenWatch
    updater: RuntimeUpdater
    uplink: Uplink
    verifier: Verifier
    profile: Callable[[], DeviceProfile]  # takes a while the first time
    readings: Readings
    wake: threading.Event
    pipelines: Keeper | None = None


class Agent:
    """Control side of the process."""

    def __init__(self, parts: Parts, *, on_first_inference: Callable[[float], None]) -> None:
        self._parts = parts
        self._inbox: queue.Queue[tuple[str, bytes]] = queue.Queue(INBOX_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control")
        self._on_first_inference = on_first_inference
        self._first_inference_s: float | None = None
        self._first_saved = False
        self._report_due = True
        self._reported_at = -1e9
        now = parts.clock.monotonic()
        self._drain_at = now + parts.deployer.record.config.window_s
        self._maintain_at = now
        self._settled, self._settle_at = False, now + SETTLE_S_MAX
        self._refused: str = ""
        self.failure: Exception | None = None
        self.stepped_at = now  # monotonic seconds of the control thread's newest round
        self.on_end: Callable[[], object] = lambda: None  # the control thread has ended
        parts.link.on_message = self._arrived
        parts.link.on_connect = self._connected

    def start(self) -> None:
        """Begin working; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop in order: drain the counters, mark the record clean, say goodbye."""
        self._stopping.set()
        self._parts.wake.set()
        self._thread.join()
        self._parts.link.stop()

    def answered(self, ago_s: float) -> None:
        """The first inference was answered so long ago (called from the front's thread)."""
        age_s = process_facts.age_s()
        if self._first_inference_s is None and age_s is not None:
            self._first_inference_s = age_s - ago_s
            self._parts.wake.set()

    # --- called by the link's thread -----------------------------------------------------------

    def _arrived(self, leaf: str, payload: bytes) -> None:
        try:
            self._inbox.put_nowait((leaf, payload))
        except queue.Full:
            log.warning("inbox full: dropped a message on %s, it will be repeated", leaf)
        self._parts.wake.set()

    def _connected(self) -> None:
        self._arrived("connected", b"")

    # --- control thread ------------------------------------------------------------------------

    def _run(self) -> None:
        parts = self._parts
        try:
            self._announce()
            while not (self._stopping.is_set() or self.switching):
                try:
                    self._step()
                except RuntimeUnfitError:
                    raise  # the supervisor goes back to the runtime before
                except EdgekitError as exc:
                    # Disk full or damaged: telemetry waits in the rings, inference goes on.
                    log.error("%s", exc.message)  # noqa: TRY400 - expected, one line
                    self._stopping.wait(TROUBLE_S)
                self.stepped_at = parts.clock.monotonic()
                parts.wake.wait(TICK_S)
                parts.wake.clear()
            self._close()
            if self.switching:
                self.on_end()
        except Exception as exc:  # noqa: BLE001 - handed to the main thread, which ends the process
            self.failure = exc
            self.on_end()

    def _announce(self) -> None:
        parts = self._parts
        self._emit(
            DeviceEvent(
                kind="start",
                detail=f"agent {__version__}, boot {parts.spool.cursor.boot}",
                at=parts.clock.wall(),
            )
        )
        for note in (*parts.spool.notes, *parts.counting.notes):
            log.warning("%s", note)
            self._emit(DeviceEvent(kind="recovery", detail=note[:500], at=parts.clock.wall()))

    def _emit(self, record: Record) -> None:
        emit(self._parts.spool, record)

    def _step(self) -> None:
        parts = self._parts
        self._read_inbox()
        if parts.deployer.advance():
            self._report_due = True
        now = parts.clock.monotonic()
        window_s = max(WINDOW_S_MIN, parts.deployer.record.config.window_s)
        # A shorter window takes effect at once, not after the old one has run out.
        self._drain_at = min(self._drain_at, now + window_s)
        if now >= self._drain_at or parts.counting.fullest() >= DRAIN_AT:
            self._drain_at = now + window_s
            parts.counting.drain()
            parts.deployer.checkpoint()
        if not self._settled:
            self._settle(now)
            return  # in this round, too, somebody may be waiting for the first answer
        parts.uplink.pump()
        if now >= self._maintain_at:
            self._maintain_at = now + MAINTAIN_S
            parts.spool.flush()
            parts.spool.maintain()
            parts.counting.retire()
            for event in parts.pipelines.events() if parts.pipelines else ():
                self._emit(event)
            parts.golden.advance(parts.deployer.record)
            parts.updater.advance(parts.deployer.record, healthy=self._healthy())
            self._report_due |= parts.updater.changed
        if self._first_inference_s is not None and not self._first_saved:
            self._first_saved = self._report_due = True
            self._on_first_inference(self._first_inference_s)
        overdue = now - self._reported_at >= parts.deployer.record.config.report_s
        if (self._report_due or overdue) and self._report():
            self._report_due = False
            self._reported_at = now

    def _settle(self, now: float) -> None:
        """Begin with the rest once what was active is served again, or takes too long.

        Whoever needs an answer comes before whoever wants to know about it. The connection alone
        imports as much as a worker does.
        """
        if self._healthy() or now >= self._settle_at:
            self._settled = True
            self._parts.profile()  # takes a while: a report is to follow the connection at once
            self._parts.link.start()

    @property
    def switching(self) -> bool:
        """The supervisor is asked for another runtime: end in order."""
        return self._parts.updater.switching

    def _healthy(self) -> bool:
        """Everything deployed is served. The broker's part of the world does not count."""
        servings = self._parts.deployer.servings
        active = [name for name, m in self._parts.deployer.record.models.items() if m.active]
        return all(name in servings and servings[name].live is not None for name in active)

    def _read_inbox(self) -> None:
        while True:
            try:
                leaf, payload = self._inbox.get_nowait()
            except queue.Empty:
                return
            try:
                self._take(leaf, payload)
            except EdgekitError as exc:
                log.warning("%s: %s", leaf, exc.message)
                if leaf == topics.DESIRED:
                    self._refused = f"desired state refused: {exc.message}"
                    self._report_due = True

    def _take(self, leaf: str, payload: bytes) -> None:
        parts = self._parts
        if leaf == "connected":
            parts.uplink.reset()
            self._report_due = True
        elif leaf == topics.ACK:
            ack = codec.decode(Ack, payload, what="ack", bytes_max=SMALL_MESSAGE_BYTES_MAX)
            parts.uplink.acknowledge(ack)
        elif leaf == topics.DESIRED and payload:
            envelope = codec.open_envelope(payload, what="desired", bytes_max=DESIRED_BYTES_MAX)
            inner = bytes(envelope.payload)
            parts.verifier.desired(inner, envelope.sig)
            desired = codec.decode(Desired, inner, what="desired")
            links = {name: each.compose for name, each in desired.deployments.items()}
            composition.check_acyclic(links)
            for name, deployment in desired.deployments.items():
                check_policy(deployment.policy)
                check_group(name, deployment.group)
                composition.check_links(name, deployment.compose)
                for variant in deployment.variants.values():
                    digests.parse(variant.digest)
                    if variant.image is not None:
                        digests.parse(variant.image.digest)
            self._refused = ""
            parts.updater.offer(desired)
            parts.deployer.offer(desired, digests.of_bytes(inner))

    def _report(self) -> bool:
        parts = self._parts
        if not parts.link.connected:
            return False
        record, cursor = parts.deployer.record, parts.spool.cursor
        document = Reported(
            gen_observed=record.gen,
            desired_digest=record.desired_digest,
            profile=parts.profile(),
            boot=cursor.boot,
            epoch=cursor.epoch,
            models=parts.deployer.reports(),
            runtime=parts.updater.report(),
            device_state=record.device_state,
            health=Health(
                pid=os.getpid(),
                rss_bytes=process_facts.rss_bytes(),
                start_to_first_inference_s=self._first_inference_s,
                inferences=parts.counting.produced(),
                workers_ended=parts.deployer.workers_ended,
                spool=parts.spool.report(),
                pipelines=parts.pipelines.reports() if parts.pipelines else {},
                resources=parts.readings.read(parts.deployer.workers_rss),
            ),
            at=parts.clock.wall(),
            note=self._refused or record.note,
        )
        return parts.link.publish(topics.REPORTED, codec.encode(document), retain=True)

    def _close(self) -> None:
        parts = self._parts
        parts.counting.drain()
        parts.uplink.pump()
        parts.spool.flush()
        parts.spool.maintain()
        parts.deployer.checkpoint(clean=True)
        self._report()


def emit(spool: Spool, record: Record) -> None:
    """Store an audit record; a full disk loses the record, not the agent."""
    try:
        spool.append(Lane.AUDIT, [record])
    except EdgekitError as exc:
        log.error("audit record %s lost: %s", msgspec.json.encode(record), exc.message)  # noqa: TRY400
