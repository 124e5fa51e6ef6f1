"""A client of the agent's own endpoint: OIP over the Unix socket, standard library only.

One connection that stays open, binary tensors, one request at a time. What may be different in a
moment (no agent, no model, no room) is an `AwayError` with a time to wait; it is sent again under
the same id and counted once.
"""

from __future__ import annotations

import http.client
import math
import socket
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit_runtime import oip
from edgekit_runtime.ports import Array

RETRY_S_MAX = 30.0  # a Retry-After that asks for more is not believed
BODY_BYTES_MAX = 64 * 1024 * 1024  # of an answer
T = TypeVar("T")
_AGAIN = {404, 408, 429, 503}  # 404: a model that is not deployed yet


class AwayError(UnavailableError):
    """Not now; ``retry_after_s`` says when to ask again."""


class EngineFailedError(UnavailableError):
    """The model failed on this input (500): asked again it would fail again."""


class TooLargeError(BadInputError):
    """The endpoint takes no body of this size (413)."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What the pipeline needs of ``GET /v2/models/{name}``."""

    versions: tuple[str, ...]
    edgekit_contract: Contract


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of an answer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one inference."""

    model_name: str
    model_version: str
    outputs: tuple[Output, ...]
    parameters: dict[str, Any] = {}


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    error: str = ""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """See `http.client.HTTPConnection.connect`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Endpoint:
    """One thread's."""

    def __init__(self, path: str, model: str, *, timeout_s: float = 60.0) -> None:
        self._path = path
        self._model = f"/v2/models/{model}"
        self._timeout_s = timeout_s
        self._connection: UnixConnection | None = None

    def model(self) -> Model:
        """What serves now.

        Raises:
            AwayError: nothing does.
        """
        raw = self._ask("GET", self._model, b"", {})
        return _decoded(raw, Model)

    def infer(self, request_id: str, arrays: Mapping[str, Array], taken_at: float) -> Answer:
        """The answer to one sample, measured at ``taken_at`` (Unix seconds).

        Raises:
            AwayError: not now.
            BadInputError: the contract refuses it.
            EngineFailedError: the model failed on it.
        """
        head, parts = _request(request_id, arrays, taken_at)
        headers = {"Inference-Header-Content-Length": str(len(head))}
        raw = self._ask("POST", f"{self._model}/infer", b"".join([head, *parts]), headers)
        return _decoded(raw, Answer)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        connection = self._connection or UnixConnection(self._path, self._timeout_s)
        self._connection = connection
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            raw = response.read(BODY_BYTES_MAX)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise AwayError(f"the agent does not answer: {exc}") from exc
        if response.will_close:
            self.close()
        if response.status == http.client.OK:
            return raw
        raise _refusal(response.status, raw, response.getheader("retry-after"))


def _refusal(status: int, raw: bytes, retry_after: str | None) -> Exception:
    try:
        message = msgspec.json.decode(raw, type=_Error).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = ""
    message = message or f"status {status}"
    if status in _AGAIN:
        return AwayError(message, retry_after_s=retry_s(retry_after))
    if status == http.client.REQUEST_ENTITY_TOO_LARGE:
        return TooLargeError(message, hint="raise [serve] body_bytes_max")
    if status < http.client.INTERNAL_SERVER_ERROR:
        return BadInputError(message)
    return EngineFailedError(message)


def retry_s(text: str | None) -> float | None:
    """What a Retry-After in seconds asks for; None when it says nothing that is understood."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return min(RETRY_S_MAX, value) if math.isfinite(value) and value >= 0 else None


def _request(
    request_id: str, arrays: Mapping[str, Array], taken_at: float
) -> tuple[bytes, list[bytes]]:
    tensors, parts = [], []
    for name, array in arrays.items():
        parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        tensors.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": oip.datatype_of(array),
                "parameters": {"binary_data_size": len(parts[-1])},
            }
        )
    # Read where a contract limits the age of its inputs.
    parameters = {"taken_at": taken_at}
    head = {"id": request_id, "parameters": parameters, "inputs": tensors}
    return msgspec.json.encode(head), parts


def _decoded(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise AwayError(f"the agent's answer cannot be read: {exc}") from exc
