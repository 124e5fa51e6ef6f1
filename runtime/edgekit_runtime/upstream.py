"""A worker asks another model on this device, through the agent's own endpoint.

So it meets whichever version serves, through switches and crashes, and is counted there as any
request is, under the id of the request it belongs to.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping, Sequence
from time import monotonic_ns

from edgekit.contracts.errors import BadInputError, EdgekitError, UnavailableError
from edgekit_runtime import oip
from edgekit_runtime.board import Board
from edgekit_runtime.errors import GuardError, NotServingError
from edgekit_runtime.ports import Array

# Below the time in which an idle worker has to show that it lives.
ANSWER_S_MAX = 5.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_S_MAX)
        self.sock.connect(self._path)


class Upstream:
    """One connection, kept. Not thread-safe."""

    def __init__(self, path: str, board: Board) -> None:
        """``board``: while we wait for others this worker is not busy."""
        self._path = path
        self._board = board
        self._connection: _Connection | None = None

    def ask(
        self,
        model: str,
        arrays: Mapping[str, Array],
        outputs: Sequence[str],
        request_id: str | None,
    ) -> tuple[Mapping[str, Array], str]:
        """Outputs and version of ``model``.

        Raises:
            GuardError: it refuses these inputs.
            NotServingError: it does not answer, or not in time.
        """
        self._board.begin(0)
        try:
            return self._ask(model, arrays, outputs, request_id)
        finally:
            self._board.begin(monotonic_ns())

    def _ask(
        self,
        model: str,
        arrays: Mapping[str, Array],
        outputs: Sequence[str],
        request_id: str | None,
    ) -> tuple[Mapping[str, Array], str]:
        length, body = oip.ask(arrays, outputs, request_id)
        headers = {"Inference-Header-Content-Length": str(length)}
        path = f"/v2/models/{model}/infer"
        try:
            status, told, raw = self._exchange(path, body, headers)
        except (OSError, http.client.HTTPException) as exc:
            self._close()
            text = f"{model}, which feeds this model, did not answer: {exc or type(exc).__name__}"
            raise NotServingError(text, retry_after_s=1.0) from exc
        if status != http.client.OK:
            raise _refused(model, status, raw)
        try:
            found, version = oip.read_answer(raw, int(told) if told else oip.ALL_JSON)
        except (BadInputError, ValueError) as exc:
            raise NotServingError(f"{model}, which feeds this model: {exc}") from exc
        missing = [name for name in outputs if name not in found]
        if missing:
            raise NotServingError(f"{model}, which feeds this model, has no output {missing[0]!r}")
        return found, version

    def _exchange(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, str | None, bytes]:
        if self._connection is None:
            self._connection = _Connection(self._path)
        connection = self._connection
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        raw = response.read()
        told = response.getheader("Inference-Header-Content-Length")
        if response.will_close:
            self._close()
        return response.status, told, raw

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _refused(model: str, status: int, raw: bytes) -> EdgekitError:
    text = f"{model}, which feeds this model: {oip.read_error(raw)}"
    if status == http.client.BAD_REQUEST:
        return GuardError(text)
    if status == http.client.NOT_FOUND:
        return NotServingError(text, retry_after_s=1.0)
    return UnavailableError(text, retry_after_s=1.0)
