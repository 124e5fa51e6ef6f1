"""Publisher: hands owed desired documents to the broker, again whenever it came back.

It plans from the database alone (``published_gen < gen``); a wake-up only makes it look sooner.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edgekit.contracts import topics
from edgekit.contracts.errors import EdgekitError
from edgekit_fleet.ports import Link
from edgekit_fleet.store import twins
from edgekit_fleet.store.engine import Database
from edgekit_fleet.store.twins import Outgoing

log = logging.getLogger(__name__)

LOOK_S = 1.0  # how soon a lost wake-up is made good
IN_FLIGHT_MAX = 500  # documents not yet taken by the broker; the library's window is twice this
RESEND_S = 5.0  # a document the broker never took is handed over again after this


class Publisher:
    """Publishes retained desired documents, at QoS 1."""

    def __init__(self, database: Database, *, tenant: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._tenant = tenant
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._republish_all = True
        self._in_flight: dict[tuple[int, int], float] = {}
        self._taken: list[tuple[int, int]] = []
        self.problem = ""

    def wake(self) -> None:
        """Something may be owed; callable from any thread."""
        self._wake.set()

    def broker_returned(self) -> None:
        """The broker may have lost what it retained: every document is owed again."""
        with self._lock:
            self._republish_all = True
            self._in_flight.clear()
        self._wake.set()

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping.set()
        self._wake.set()

    def run(self, link: Link) -> None:
        """Publish what is owed until `stop`."""
        while not self._stopping.is_set():
            try:
                self.publish_owed(link)
            except EdgekitError as exc:
                if not self.problem:
                    log.error("publisher waits: %s", exc.message)  # noqa: TRY400 - expected
                self.problem = exc.message
            else:
                self.problem = ""
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def publish_owed(self, link: Link) -> int:
        """One round; returns how many documents were handed over."""
        with self._lock:
            taken, self._taken = self._taken, []
            republish_all = self._republish_all and link.connected
            if republish_all:
                self._republish_all = False
        if taken or republish_all:
            with self._database.write() as connection:
                for device_id, gen in taken:
                    twins.published(connection, device_id, gen)
                if republish_all:
                    twins.owe_all(connection)
        if not link.connected:
            return 0
        with self._database.read() as connection:
            owed = twins.owed(connection, self._tenant, 2 * IN_FLIGHT_MAX)
        return sum(self._publish(link, document) for document in owed)

    def _publish(self, link: Link, document: Outgoing) -> bool:
        key, now = (document.device_id, document.gen), self._clock()
        with self._lock:
            if now - self._in_flight.get(key, 0.0) < RESEND_S:
                return False
            if len(self._in_flight) >= IN_FLIGHT_MAX and key not in self._in_flight:
                return False
            self._in_flight[key] = now
        topic = document.address.topic(topics.DESIRED)
        sent = link.publish(
            topic, document.payload, retain=True, on_taken=lambda: self._on_taken(key)
        )
        if not sent:
            with self._lock:
                self._in_flight.pop(key, None)
        return sent

    def _on_taken(self, key: tuple[int, int]) -> None:
        with self._lock:
            self._in_flight.pop(key, None)
            self._taken.append(key)
        self._wake.set()
