"""uvicorn's HTTP protocol with the bounds a device needs: heads, slow clients, connections.

uvicorn 0.30 and newer waits for ever for the rest of a request, takes heads of any size and drops
the answer to a client that has closed its sending side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 32 * 1024  # of request line and headers; ours need a few hundred
_BUSY = (503, "Service Unavailable", "too many connections")
_SLOW = (408, "Request Timeout", "the request took too long to arrive")
_LARGE = (431, "Request Header Fields Too Large", f"head of more than {HEAD_BYTES_MAX} bytes")


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, connections_max: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connections_max = connections_max
        self._head_bytes = 0
        self._in_head = True
        self.waiting_since: float | None = monotonic()  # None: no request is half received

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self._connections_max:
            self.refuse(*_BUSY)

    def data_received(self, data: bytes) -> None:
        """Bound the head."""
        if self._in_head:
            self._head_bytes += len(data)
        if self.waiting_since is None:
            self.waiting_since = monotonic()
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            self.refuse(*_LARGE)

    def on_headers_complete(self) -> None:
        """The head is over."""
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is here."""
        self._in_head, self.waiting_since = True, None
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that only stopped sending still gets the answer to a complete request."""
        cycle = self.cycle
        if self.waiting_since is None and cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            return True
        return False

    def refuse(self, status: int, phrase: str, message: str) -> None:
        """Answer outside the application, and hang up."""
        if self.transport.is_closing():
            return
        body = f'{{"error":"{message}"}}'.encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def sweep(self, now: float, client_s_max: float) -> None:
        """Hang up on a client that does not finish its request."""
        since = self.waiting_since
        if since is not None and now - since > client_s_max:
            self.refuse(*_SLOW)


def factory(connections_max: int) -> Callable[..., BoundedProtocol]:
    """What uvicorn calls for each connection."""

    def make(*arguments: Any, **options: Any) -> BoundedProtocol:
        return BoundedProtocol(*arguments, connections_max=connections_max, **options)

    return make
