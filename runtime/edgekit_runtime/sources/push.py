"""HTTP push: ``POST /push/NAME`` on the loopback address; 202 when it is queued.

A client's ``X-Request-Id`` makes it safe to send again: the item is inferred again and counted
once. The answer goes to the sinks; 202 promises only that the item waits in memory.
"""

from __future__ import annotations

import re
import secrets
import socket
import time
from time import monotonic

import msgspec

from edgekit.contracts.errors import UnavailableError
from edgekit_runtime import oip
from edgekit_runtime.board import Grip
from edgekit_runtime.client import Client, Connections
from edgekit_runtime.http1 import HttpError, Reply, Request
from edgekit_runtime.loop import READ, Loop
from edgekit_runtime.pipelines.intake import Fate, Item, Outcome
from edgekit_runtime.pipelines.spec import HttpSource
from edgekit_runtime.sources.admission import Admission, plain_id

LOOPBACK = "127.0.0.1"  # there is no authentication: never another address
CONNECTIONS_MAX = 64
CLIENT_S_MAX = 30.0
BODIES_MAX = 4  # largest bodies that are received at once
TURN_S = 0.2
_ID = re.compile(rb"^x-request-id:[ \t]*([^\r]*?)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)


class PushServer(Connections):
    """`edgekit_runtime.sources.admission.Source` over HTTP."""

    def __init__(self, source: HttpSource, door: Admission) -> None:
        """Listen.

        Raises:
            UnavailableError: the port is in use.
        """
        super().__init__(
            Loop(),
            body_bytes_max=source.bytes_max,
            bodies_bytes_max=source.bytes_max * BODIES_MAX,
            client_s_max=CLIENT_S_MAX,
        )
        self._door = door
        self._path = f"/push/{door.spec.name}"
        self._run_id, self._count = secrets.token_hex(4), 0
        self._numbers = list(range(CONNECTIONS_MAX))
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind((LOOPBACK, source.port))
        except OSError as exc:
            self._listener.close()
            raise UnavailableError(
                f"source.port {source.port}: {exc.strerror}", hint="choose another source.port"
            ) from exc
        self._listener.listen(CONNECTIONS_MAX)
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), READ, lambda _: self._accept())

    def run(self) -> None:
        """See `Source.run`."""
        swept_at = monotonic()
        while not self._door.stopping.is_set():
            self._loop.turn(TURN_S)
            if monotonic() - swept_at >= TURN_S:
                swept_at = monotonic()
                self.sweep(swept_at)
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for found in list(self.clients.values()):
            self.drop(found)

    def close(self) -> None:
        """See `Source.close`."""

    # --- see Connections -----------------------------------------------------------------------

    def requested(self, found: Client, request: Request) -> None:
        """An item, or a wrong turn."""
        try:
            reply = self._take(request)
        except HttpError as exc:
            reply = Reply(exc.status, oip.error(exc.message), exc.headers)
        self.answer(found, reply, keep_alive=request.keep_alive)

    def refused(self, status: int) -> None:
        """Something too large never became an item; it arrived, and is counted."""
        if status == 413:
            item = Item(id="", payload=b"", size=0, at=time.time())
            self._door.refuse(item, "too_large", "body")

    def gripped(self, found: Client, grip: Grip) -> None:
        """Nobody else holds these connections."""

    def lost(self, found: Client) -> None:
        """Its number is free again."""
        self._numbers.append(found.number)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # gone again
        if not self._numbers:
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.adopt(sock, self._numbers.pop())

    def _take(self, request: Request) -> Reply:
        if request.path != self._path:
            raise HttpError(404, f"no such path: {request.path[:200]}; this is {self._path}")
        if request.method != "POST":
            raise HttpError(405, f"{request.method} is not allowed here", headers={"allow": "POST"})
        item_id = self._id_of(request)
        body = bytes(request.body)
        fates: list[Fate] = []
        item = Item(item_id, body, len(body), time.time(), settle=fates.append)
        if self._door.admit(item):
            return Reply(202, msgspec.json.encode({"id": item_id}))
        (fate,) = fates
        if fate.outcome is Outcome.RETURNED:
            raise HttpError(503, f"{item_id} was not taken: the pipeline ends", retry_s=1)
        if fate.reason == "sampled":  # it was taken note of; sent again it would fare the same
            return Reply(202, msgspec.json.encode({"id": item_id, "dropped": fate.reason}))
        raise HttpError(429, f"{item_id} was not taken: {fate.reason}", retry_s=1)

    def _id_of(self, request: Request) -> str:
        said = _ID.search(request.head)
        if said is not None and said[1]:
            return plain_id(said[1].decode("latin-1"))
        self._count += 1
        return f"{self._door.spec.name}-{self._run_id}-{self._count}"
