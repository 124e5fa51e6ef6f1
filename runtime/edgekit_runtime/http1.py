"""HTTP/1.1 as a server reads and writes it (RFC 9112), without I/O.

Written here because a connection moves between processes: whoever hands it on must know which
bytes it has read and not answered, to the byte, and parsers with callbacks do not tell. It is
strict where leniency is how requests are smuggled: CRLF only, no folded lines, one length, no
other coding than ``chunked``. What it cannot read ends the connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

HEAD_BYTES_MAX = 32 * 1024  # of request line and headers; ours need a few hundred
USUAL_HEAD_BYTES = 1024  # heads up to this long are remembered
CHUNK_LINE_BYTES_MAX = 256
RECEIVE_BYTES = 1 << 16  # of one read where no length is known
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON_LENGTH_MAX = 2**31 - 1
_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~\x80-\xff]*) HTTP/1\.([01])\r\n")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*\r\n")
# The fields that mean something here.
_KNOWN = re.compile(
    rb"^(content-length|transfer-encoding|connection|expect|inference-header-content-length)"
    rb":[ \t]*([^\r]*?)[ \t]*\r$",
    re.IGNORECASE | re.MULTILINE,
)
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class HttpError(Exception):
    """What a client is told instead of an answer; ``retry_s``: when to come again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_s: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {**(headers or {}), **({"retry-after": str(retry_s)} if retry_s else {})}


class Reply(NamedTuple):
    """An answer before it is rendered; ``headers`` beside length and the JSON content type."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class Request(NamedTuple):
    """One request, received whole. ``raw`` is all of it, as it came."""

    method: str
    path: str
    body: bytes | bytearray
    keep_alive: bool
    json_length: int | None  # Inference-Header-Content-Length
    head: bytes
    coded: bytes | None  # the body as it came when that was chunked

    @property
    def raw(self) -> bytes:
        """The bytes that another parser would make this request of."""
        return self.head + (self.body if self.coded is None else self.coded)


class Room:
    """Bytes that bodies still being received may hold, over all connections of a process."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def take(self, count: int) -> None:
        """Raises `HttpError` (503) when there is no room for a body of ``count`` bytes."""
        if count > self._left:
            raise HttpError(503, "no room for another body", retry_s=1)
        self._left -= count

    def give(self, count: int) -> None:
        """Give back what was taken."""
        self._left += count


class _Head(NamedTuple):
    raw: bytes
    method: str
    path: str
    keep_alive: bool
    length: int
    chunked: bool
    expects: bool
    json_length: int | None


class Parser:
    """One connection's receiving side. After an `HttpError` it is not to be used again."""

    def __init__(self, body_bytes_max: int, room: Room, held: bytes = b"") -> None:
        self._body_bytes_max = body_bytes_max
        self._room = room
        self._held = held  # received and not parsed
        self._head: _Head | None = None
        self._body = bytearray()
        self._filled = 0
        self._coded = bytearray()  # of a chunked body, as it came
        self._chunk_at = 0  # where in it the next chunk begins
        self._taken = 0  # of the room
        self._told_to_go_on = False

    @property
    def empty(self) -> bool:
        """Whether nothing of a next request is here."""
        return self._head is None and not self._held

    @property
    def line(self) -> bytes | None:
        """The request line, once it is here."""
        if self._head is not None:
            return self._head.raw.partition(b"\r\n")[0]
        end = self._held.find(b"\r\n")
        return None if end < 0 else self._held[:end]

    def room(self) -> memoryview | None:
        """Where the rest of a body with a length is to be received; else `feed` it."""
        if self._head is None or self._head.chunked:
            return None
        return memoryview(self._body)[self._filled :]

    def received(self, count: int) -> None:
        """``count`` bytes were received into `room`."""
        self._filled += count

    def feed(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._head is not None and self._head.chunked:
            self._coded += data
        else:
            self._held = self._held + data if self._held else data

    def wants_go_on(self) -> bool:
        """Whether the client waits for ``100 Continue``; asked once a request."""
        found = self._head is not None and self._head.expects and not self._told_to_go_on
        self._told_to_go_on = self._told_to_go_on or found
        return found

    def take(self) -> Request | None:
        """The next request, once it is whole.

        Raises:
            HttpError: what came is not one, or is too large.
        """
        if self._head is None:
            head = self._read_head()
            if head is None:
                return None
            if not head.chunked and len(self._held) >= head.length:
                body, self._held = self._held[: head.length], self._held[head.length :]
                return _request(head, body, None)
            self._begin(head)
        assert self._head is not None
        if self._head.chunked:
            return self._take_chunked(self._head)
        return self._finish(self._head, None) if self._filled == len(self._body) else None

    def unread(self) -> bytes:
        """Everything received that belongs to no request taken so far."""
        if self._head is None:
            return self._held
        body = self._coded if self._head.chunked else memoryview(self._body)[: self._filled]
        return self._head.raw + body + self._held

    def close(self) -> None:
        """Give back the room a half received body takes."""
        self._room.give(self._taken)
        self._taken = 0

    def _read_head(self) -> _Head | None:
        end = self._held.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
        if end < 0:
            if len(self._held) >= HEAD_BYTES_MAX:
                raise HttpError(431, f"head of more than {HEAD_BYTES_MAX} bytes")
            return None
        raw, self._held = self._held[: end + 4], self._held[end + 4 :]
        parse = _parse_usual if len(raw) <= USUAL_HEAD_BYTES else _parse_head
        return parse(raw, self._body_bytes_max)

    def _begin(self, head: _Head) -> None:
        if not head.chunked:
            self._room.take(head.length)
            self._taken = head.length
            self._body = bytearray(head.length)
            self._filled = len(self._held)
            self._body[: self._filled] = self._held
        else:
            self._coded += self._held
        self._held = b""
        self._head = head

    def _finish(self, head: _Head, coded: bytes | None) -> Request:
        body, self._body = self._body, bytearray()
        self._head, self._filled, self._told_to_go_on = None, 0, False
        self.close()
        return _request(head, body, coded)

    def _take_chunked(self, head: _Head) -> Request | None:
        while True:
            end = self._coded.find(b"\r\n", self._chunk_at, self._chunk_at + CHUNK_LINE_BYTES_MAX)
            if end < 0:
                if len(self._coded) - self._chunk_at >= CHUNK_LINE_BYTES_MAX:
                    raise HttpError(400, "chunk: its size line does not end")
                return None
            text = bytes(self._coded[self._chunk_at : end]).partition(b";")[0].strip()
            if not text or len(text) > 15 or text.strip(b"0123456789abcdefABCDEF"):
                raise HttpError(400, "chunk: not a size")
            size = int(text, 16)
            if size == 0:
                return self._end_chunked(head, end + 2)
            if len(self._body) + size > self._body_bytes_max:
                raise HttpError(
                    413, f"body is larger than the {self._body_bytes_max} bytes allowed"
                )
            start = end + 2
            if len(self._coded) < start + size + 2:
                return None
            if self._coded[start + size : start + size + 2] != b"\r\n":
                raise HttpError(400, "chunk: longer than its size")
            self._room.take(size)
            self._taken += size
            self._body += self._coded[start : start + size]
            self._chunk_at = start + size + 2

    def _end_chunked(self, head: _Head, at: int) -> Request | None:
        """Skips trailer fields: after them comes an empty line."""
        end = at
        while (line := self._coded.find(b"\r\n", end)) != end:
            if line < 0:
                if len(self._coded) - at > HEAD_BYTES_MAX:
                    raise HttpError(431, f"trailers of more than {HEAD_BYTES_MAX} bytes")
                return None
            end = line + 2
        coded = bytes(self._coded[: end + 2])
        self._held, self._coded, self._chunk_at = bytes(self._coded[end + 2 :]), bytearray(), 0
        return self._finish(head, coded)


def _request(head: _Head, body: bytes | bytearray, coded: bytes | None) -> Request:
    return Request(head.method, head.path, body, head.keep_alive, head.json_length, head.raw, coded)


def _parse_head(raw: bytes, body_bytes_max: int) -> _Head:
    line = _LINE.match(raw)
    if line is None:
        raise HttpError(400, "not an HTTP/1.1 request line")
    if _FIELDS.fullmatch(raw, line.end()) is None:
        raise HttpError(400, "malformed header field")
    method, target, minor = line.groups()
    fields: dict[bytes, bytes] = {}
    for name, value in _KNOWN.findall(raw):
        key = name.lower()
        if key in fields and key != b"connection":
            raise HttpError(400, f"header {key.decode()}: sent twice")
        fields[key] = value
    chunked = b"transfer-encoding" in fields
    if chunked and (
        b"content-length" in fields or fields[b"transfer-encoding"].lower() != b"chunked"
    ):
        raise HttpError(400, "transfer-encoding: only chunked, and without content-length")
    length = _length(fields, b"content-length") or 0
    if length > body_bytes_max:
        raise HttpError(413, f"body of {length} bytes, allowed are {body_bytes_max}")
    connection = fields.get(b"connection", b"").lower()
    keep_alive = b"close" not in connection if minor == b"1" else b"keep-alive" in connection
    json_length = _length(fields, b"inference-header-content-length")
    return _Head(
        raw=raw,
        method=method.decode(),
        path=path_of(target),
        keep_alive=keep_alive,
        length=length,
        chunked=chunked,
        expects=fields.get(b"expect", b"").lower() == b"100-continue",
        json_length=None if json_length is None else min(json_length, JSON_LENGTH_MAX),
    )


# A client sends the same head again and again: nothing but the body differs.
_parse_usual = lru_cache(maxsize=256)(_parse_head)


def path_of(target: bytes) -> str:
    """The decoded path of a request's target."""
    path = target.partition(b"?")[0].decode("latin-1")
    if "%" not in path:
        return path
    from urllib.parse import unquote  # noqa: PLC0415 - stock clients ask for plain names

    return unquote(path)


def _length(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 15:
        raise HttpError(400, f"header {name.decode()}: not a length")
    return int(value)


def render(reply: Reply, *, keep_alive: bool) -> bytes:
    """The bytes of ``reply``."""
    status, body, headers = reply
    fields = [b"HTTP/1.1 %d %s\r\ncontent-length: %d\r\n" % (status, _PHRASES[status], len(body))]
    if "content-type" not in headers:
        fields.append(b"content-type: application/json\r\n")
    fields += [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    if not keep_alive:
        fields.append(b"connection: close\r\n")
    fields += (b"\r\n", body)
    return b"".join(fields)
