"""Ingest: messages from devices become rows, exactly once.

Order of things for every batch, which is what makes a SIGKILL at any point harmless:

1. decode; what is malformed is counted and dropped, it never stops the rest;
2. one transaction: frames not seen before and all that they say, presence, snapshots;
3. COMMIT;
4. MQTT acknowledgement to the broker;
5. application ack to the device, which only then forgets its frames. Duplicates are acked again:
   the device may have missed the first ack.

The address of a message is its topic, never its content (the broker's ACL guards topics).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from edgekit.contracts import codec, frames, topics
from edgekit.contracts.backoff import Backoff
from edgekit.contracts.errors import BadInputError, EdgekitError
from edgekit.contracts.limits import (
    ACK_INTERVALS_MAX,
    FRAME_BYTES_MAX,
    REPORTED_BYTES_MAX,
    SMALL_MESSAGE_BYTES_MAX,
)
from edgekit.contracts.messages import Ack, DeviceConfig, DeviceEvent, Presence, Record, Reported
from edgekit.contracts.topics import Address
from edgekit_fleet import limits
from edgekit_fleet.ports import Incoming, Link
from edgekit_fleet.store import devices, telemetry, twins
from edgekit_fleet.store.engine import Database
from edgekit_fleet.store.telemetry import FramesSeen, Stream

log = logging.getLogger(__name__)

QUEUE_MESSAGES_MAX = 20_000  # the broker's in-flight window bounds it long before this
_FRAME_LEAVES = frozenset({topics.EVENT, topics.TELEMETRY_LIVE, topics.TELEMETRY_BACKFILL})
_BYTES_MAX = {
    topics.REPORTED: REPORTED_BYTES_MAX,
    topics.PRESENCE: SMALL_MESSAGE_BYTES_MAX,
    **dict.fromkeys(_FRAME_LEAVES, FRAME_BYTES_MAX),
}


@dataclass(frozen=True)
class Frame:
    """A decoded telemetry frame. ``problem`` says why an intact frame's records were refused."""

    header: frames.FrameHeader
    records: Sequence[Record] = ()
    unknown: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Parsed:
    """One message, decoded."""

    address: Address
    body: Frame | Presence | Reported
    raw: bytes
    retained: bool


@dataclass
class Outcome:
    """What a committed batch still has to do outside the database."""

    counts: Counter[str] = field(default_factory=Counter)
    acks: list[tuple[Address, Ack]] = field(default_factory=list)
    republish: bool = False


def parse(message: Incoming) -> Parsed:
    """Decode a message.

    Raises:
        BadInputError: it is not one of ours, too large or malformed.
    """
    address, leaf = topics.parse(message.topic)
    bytes_max = _BYTES_MAX.get(leaf)
    if bytes_max is None:
        raise BadInputError(f"topic {message.topic}: not a topic devices send on")
    if len(message.payload) > bytes_max:
        raise BadInputError(f"{message.topic}: {len(message.payload)} bytes exceed {bytes_max}")
    body: Frame | Presence | Reported
    if leaf == topics.PRESENCE:
        body = limits.check_presence(codec.decode(Presence, message.payload, what=message.topic))
    elif leaf == topics.REPORTED:
        body = limits.check_reported(codec.decode(Reported, message.payload, what=message.topic))
    else:
        body = _parse_frame(message.payload)
    return Parsed(address, body, message.payload, message.retained)


def _parse_frame(payload: bytes) -> Frame:
    header = frames.read_header(payload)
    if header is None or header.frame_bytes != len(payload):
        raise BadInputError(f"telemetry frame of {len(payload)} bytes: damaged")
    limits.check_identity(header)
    try:
        _, records, unknown = frames.decode(payload)
        for record in records:
            limits.check_record(record)
    except BadInputError as exc:
        # The identity is sound (its CRC holds) but the content will never be: it is marked as seen
        # and reported, else the device would send it again for ever.
        return Frame(header, problem=exc.message)
    return Frame(header, records, unknown)


def _parse_or_count(message: Incoming, counts: Counter[str]) -> Parsed | None:
    try:
        return parse(message)
    except BadInputError as exc:
        is_frame = any(message.topic.endswith(f"/{leaf}") for leaf in _FRAME_LEAVES)
        counts["frames_damaged" if is_frame else "messages_malformed"] += 1
        log.warning("dropped a message: %s", exc.message)
        return None


class Ingest:
    """Takes messages from the link's thread, applies them in batches on its own."""

    def __init__(
        self,
        database: Database,
        *,
        tenant: str,
        config: DeviceConfig,
        on_owed: Callable[[], None],
        batch_s_max: float,
        batch_messages_max: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._tenant = tenant
        self._config = config
        self._on_owed = on_owed
        self._batch_s_max = batch_s_max
        self._batch_messages_max = batch_messages_max
        self._clock = clock
        self._queue: queue.Queue[Incoming] = queue.Queue(QUEUE_MESSAGES_MAX)
        self._stopping = threading.Event()
        self._asked: dict[int, float] = {}
        self.problem = ""  # why batches do not commit, for people; empty while they do

    def receive(self, message: Incoming) -> None:
        """Take a message from the link's thread; waits when full, which slows the broker."""
        while not self._stopping.is_set():
            try:
                self._queue.put(message, timeout=0.5)
            except queue.Full:
                continue
            return

    def stop(self) -> None:
        """Let `run` end after the batch at hand; what is queued stays with the broker."""
        self._stopping.set()

    def run(self, link: Link) -> None:
        """Apply batches until `stop`."""
        while not self._stopping.is_set():
            batch = self._next_batch()
            if batch:
                self._settle(link, batch)

    def _next_batch(self) -> list[Incoming]:
        try:
            batch = [self._queue.get(timeout=0.2)]
        except queue.Empty:
            return []
        deadline = time.monotonic() + self._batch_s_max
        while len(batch) < self._batch_messages_max:
            left = deadline - time.monotonic()
            try:
                batch.append(self._queue.get(timeout=left) if left > 0 else self._queue.get(False))
            except queue.Empty:
                break
        return batch

    def _settle(self, link: Link, batch: list[Incoming]) -> None:
        """Commit ``batch``, however long the database refuses, then acknowledge it."""
        backoff = Backoff(base_s=0.1, cap_s=5.0)
        while not self._stopping.is_set():
            try:
                outcome = self._apply_isolating(batch)
            except EdgekitError as exc:  # disk full, locked: the messages wait, nothing is acked
                if not self.problem:
                    log.error("ingest waits: %s", exc.message)  # noqa: TRY400 - expected, one line
                self.problem = exc.message
                self._stopping.wait(backoff.next_delay_s())
                continue
            self.problem = ""
            for message in batch:
                link.acknowledge(message)
            for address, ack in outcome.acks:
                link.publish(
                    address.topic(topics.ACK), codec.encode(ack), retain=False, on_taken=None
                )
            if outcome.republish:
                self._on_owed()
            return

    def _apply_isolating(self, batch: list[Incoming]) -> Outcome:
        """Apply ``batch``; if one message breaks it in a way nobody foresaw, drop only that one."""
        try:
            return self.apply(batch)
        except EdgekitError:
            raise
        except Exception:
            if len(batch) == 1:
                log.exception("message on %s dropped", batch[0].topic[:200])
                with self._database.write() as connection:
                    telemetry.count(connection, {"messages_malformed": 1})
                return Outcome()
            log.exception("batch of %d messages failed, applying them one by one", len(batch))
        whole = Outcome()
        for message in batch:
            part = self._apply_isolating([message])
            whole.acks += part.acks
            whole.republish |= part.republish
        return whole

    def apply(self, batch: Sequence[Incoming]) -> Outcome:
        """Apply ``batch`` in one transaction.

        Raises:
            EdgekitError: the database refused; nothing was stored.
        """
        outcome = Outcome()
        parsed = [good for message in batch if (good := _parse_or_count(message, outcome.counts))]
        now = self._clock()
        with self._database.write() as connection:
            _Batch(self, connection, outcome, now).apply(parsed)
            telemetry.count(connection, outcome.counts)
        return outcome

    def may_ask(self, device_id: int, now: float) -> bool:
        """Whether to re-send a desired document to a device that is behind; at most every 2 s.

        Right after a publication every device is behind for a moment; that is not worth a message.
        """
        if now - self._asked.get(device_id, 0.0) < 2.0:
            return False
        self._asked[device_id] = now
        return True

    @property
    def tenant(self) -> str:
        """The tenant this manager serves."""
        return self._tenant

    @property
    def config(self) -> DeviceConfig:
        """Settings that every desired document carries."""
        return self._config


class _Batch:
    """One transaction's worth of messages."""

    def __init__(
        self, ingest: Ingest, connection: Connection, outcome: Outcome, now: float
    ) -> None:
        self._ingest = ingest
        self._connection = connection
        self._outcome = outcome
        self._now = now
        self._frames = FramesSeen(connection)
        self._received: dict[Stream, tuple[Address, list[int]]] = {}
        self._heard: dict[int, float] = defaultdict(float)

    def apply(self, messages: Sequence[Parsed]) -> None:
        """Everything of the batch, then what is written once per stream or device."""
        names = {message.address.device for message in messages}
        known = devices.find(self._connection, self._ingest.tenant, names)
        for message in messages:
            try:
                device = self._device(known, message.address)
            except BadInputError as exc:
                self._outcome.counts["messages_malformed"] += 1
                log.warning("dropped a message: %s", exc.message)
                continue
            self._apply_one(device.id, message)
        self._frames.flush()
        for device_id, at in self._heard.items():
            devices.seen(self._connection, device_id, at)
        self._outcome.acks += self._acks()

    def _device(
        self, known: dict[str, devices.KnownDevice], address: Address
    ) -> devices.KnownDevice:
        if address.tenant != self._ingest.tenant:
            raise BadInputError(f"tenant {address.tenant!r} is not served here")
        device = known.get(address.device)
        if device is None:
            device = devices.join(self._connection, address, self._now)
            known[address.device] = device
            log.info("device %s joined", address.device)
        elif device.shard != address.shard:
            raise BadInputError(
                f"device {address.device}: shard {address.shard} is not its {device.shard}"
            )
        return device

    def _apply_one(self, device_id: int, message: Parsed) -> None:
        body = message.body
        # A retained message says when it was written, not that the device is alive now.
        at = min(self._now, getattr(body, "at", 0.0)) if message.retained else self._now
        self._heard[device_id] = max(self._heard[device_id], at)
        if isinstance(body, Frame):
            self._apply_frame(device_id, message.address, body)
        elif isinstance(body, Presence):
            if not devices.apply_presence(self._connection, device_id, body):
                self._outcome.counts["presence_stale"] += 1
        else:
            devices.apply_reported(self._connection, device_id, message.raw, body, self._now)
            self._reconcile(device_id, body)

    def _reconcile(self, device_id: int, reported: Reported) -> None:
        """See to it that a device which is behind, ahead or new gets its desired document."""
        desired = twins.get(self._connection, device_id)
        if desired is None:
            # A device that followed documents we do not know of keeps what it runs until a rollout
            # gives it something: an empty document would take its models away.
            if reported.gen_observed == 0:
                twins.create(self._connection, device_id, self._ingest.config, self._now)
                self._outcome.republish = True
        elif reported.gen_observed > desired.gen:
            twins.overtake(self._connection, device_id, self._now)
            self._outcome.republish = True
        elif reported.gen_observed < desired.gen and self._ingest.may_ask(device_id, self._now):
            twins.owe(self._connection, device_id)
            self._outcome.republish = True

    def _apply_frame(self, device_id: int, address: Address, frame: Frame) -> None:
        header, counts = frame.header, self._outcome.counts
        stream = (device_id, header.epoch, header.boot, header.lane)
        self._received.setdefault(stream, (address, []))[1].append(header.seq)
        if not self._frames.claim(stream, header.seq):
            counts["frames_duplicate"] += 1
            return
        counts["frames"] += 1
        counts["records_unknown"] += frame.unknown
        if frame.problem is not None:
            counts["frames_damaged"] += 1
            log.warning("device %s: refused a frame: %s", address.device, frame.problem)
            event = DeviceEvent(kind="frame_refused", detail=frame.problem, at=self._now)
            telemetry.add_event(self._connection, device_id, event, self._now)
        for record in frame.records:
            if not telemetry.add_record(self._connection, device_id, header, record, self._now):
                counts["windows_duplicate"] += 1

    def _acks(self) -> list[tuple[Address, Ack]]:
        acks: list[tuple[Address, Ack]] = []
        for stream, (address, numbers) in self._received.items():
            _, epoch, boot, lane = stream
            intervals = self._frames.covering(stream, numbers)
            for start in range(0, len(intervals), ACK_INTERVALS_MAX):
                ack = Ack(
                    epoch=epoch,
                    boot=boot,
                    lane=lane,
                    intervals=tuple(intervals[start : start + ACK_INTERVALS_MAX]),
                    manager_time=self._now,
                )
                acks.append((address, ack))
        return acks
