"""Webhook sink: each answer is one HTTP POST, on a connection that stays open."""

from __future__ import annotations

import contextlib
import http.client
from urllib.parse import urlsplit

from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit_runtime.pipelines.endpoint import retry_s
from edgekit_runtime.pipelines.spec import WebhookSink
from edgekit_runtime.sinks.outlet import Line

ANSWER_BYTES_MAX = 64 * 1024  # read so that the connection can be used again
_AGAIN = {408, 425, 429}
_SUCCESS = range(200, 300)


class WebhookCaller:
    """`edgekit_runtime.sinks.outlet.Sink` on one URL. Redirects are not followed."""

    def __init__(self, sink: WebhookSink) -> None:
        self._sink = sink
        parts = urlsplit(sink.url)
        self._host, self._port = parts.hostname or "", parts.port
        self._secure = parts.scheme == "https"
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # Keys and tokens stand in headers and in the query: they are not told.
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._connection: http.client.HTTPConnection | None = None

    def deliver(self, line: Line) -> None:
        """See `Sink.deliver`."""
        headers = {"Content-Type": "application/json", "X-Request-Id": line.id}
        connection = self._connection or self._connect()
        self._connection = connection
        try:
            connection.request("POST", self._target, line.body, headers | self._sink.headers)
            response = connection.getresponse()
            response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise UnavailableError(f"{self._shown}: {exc or type(exc).__name__}") from exc
        if response.will_close or not response.isclosed():
            self.close()
        status = response.status
        if status in _SUCCESS:
            return
        message = f"{self._shown} answers {status}"
        if status in _AGAIN or status >= http.client.INTERNAL_SERVER_ERROR:
            asked = retry_s(response.getheader("retry-after"))
            raise UnavailableError(message, retry_after_s=asked)
        raise BadInputError(message)

    def idle(self) -> None:
        """See `Sink.idle`."""

    def close(self) -> None:
        """See `Sink.close`."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._sink.timeout_s)
