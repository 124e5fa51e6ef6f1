"""HTTP/1.1 as it is received: whole or in pieces, handed on at any byte, refused when malformed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime import http1
from edgekit_runtime.http1 import HttpError, Parser, Reply, Room

MAX = 100_000


def _parser(held: bytes = b"", room: Room | None = None) -> Parser:
    return Parser(MAX, room or Room(10 * MAX), held)


def _push(parser: Parser, data: bytes) -> None:
    """As a connection does: into the body's own memory when the parser says so."""
    while data:
        room = parser.room()
        if room is None:
            parser.feed(data)
            return
        count = min(len(room), len(data))
        assert count
        room[:count] = data[:count]
        parser.received(count)
        data = data[count:]
        if count == len(room):
            assert data == b"", "take() comes first"


def _requests(parser: Parser) -> list[http1.Request]:
    found = []
    while (request := parser.take()) is not None:
        found.append(request)
    return found


def _sized(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _chunked(path: str, parts: list[bytes]) -> bytes:
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return (
        f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + chunks
        + b"0\r\nX-Trailer: y\r\n\r\n"
    )


_BODIES = st.binary(max_size=300) | st.integers(0, MAX).map(lambda n: b"z" * n)
_SENT = st.lists(
    st.tuples(st.sampled_from(["/a", "/b%20c?d=e"]), st.lists(_BODIES, max_size=3), st.booleans()),
    max_size=4,
).filter(lambda sent: all(sum(map(len, parts)) <= MAX for _, parts, _ in sent))


@given(_SENT, st.lists(st.integers(1, 70_000), min_size=1), st.integers(0, 10_000))
def test_requests_survive_any_cut_and_being_handed_on(sent, cuts, hand_on):
    """The parser is replaced by one that begins with the other's unread bytes, at some point."""
    stream = b"".join(
        _chunked(path, parts) if coded else _sized(path, b"".join(parts))
        for path, parts, coded in sent
    )
    parser, found, start, turn = _parser(), [], 0, 0
    while start < len(stream):
        room = parser.room()
        size = max(1, cuts[turn % len(cuts)], len(stream) // 500)
        size = min(size, len(stream) - start, len(room) if room is not None else size)
        _push(parser, stream[start : start + size])
        found += _requests(parser)
        start, turn = start + size, turn + 1
        if start >= hand_on:
            hand_on = len(stream) + 1
            parser = _parser(parser.unread())
            found += _requests(parser)
    wanted = [(http1.path_of(path.encode()), b"".join(parts)) for path, parts, _ in sent]
    assert [(request.path, bytes(request.body)) for request in found] == wanted
    assert parser.empty
    again = _parser(b"".join(request.raw for request in found))
    assert [(r.path, bytes(r.body)) for r in _requests(again)] == wanted


def test_the_head_says_what_matters():
    raw = (
        b"POST /v2/x HTTP/1.1\r\nHOST: x\r\ninference-HEADER-content-length:  7 \r\n"
        b"Connection: Close\r\nX: 1\r\nX: 2\r\nContent-Length: 0\r\n\r\n"
    )
    (request,) = _requests(_parser(raw))
    assert (request.method, request.path, request.json_length) == ("POST", "/v2/x", 7)
    assert not request.keep_alive
    (request,) = _requests(_parser(b"GET / HTTP/1.0\r\n\r\n"))
    assert not request.keep_alive
    (request,) = _requests(_parser(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"))
    assert request.keep_alive
    assert request.json_length is None


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /a\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 100001\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nContent-Length: 9999999999999999\r\n\r\n", 400),
        (b"GET /" + b"a" * http1.HEAD_BYTES_MAX, 431),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 300, 400),
    ],
)
def test_what_is_not_a_request_is_refused(raw, status):
    with pytest.raises(HttpError) as caught:
        _requests(_parser(raw))
    assert caught.value.status == status


def test_bodies_share_a_room_and_give_it_back():
    room = Room(1000)
    first = _parser(_sized("/", b"x" * 900)[:-1], room)
    assert first.take() is None
    second = _parser(_sized("/", b"x" * 200)[:-1], room)
    with pytest.raises(HttpError) as caught:
        second.take()
    assert caught.value.status == 503
    first.close()
    assert _parser(_sized("/", b"x" * 900)[:-1], room).take() is None


def test_a_client_that_waits_for_it_is_told_to_go_on_once():
    parser = _parser(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert parser.take() is None
    assert parser.wants_go_on()
    assert not parser.wants_go_on()
    _push(parser, b"ab")
    assert parser.take() is not None


def test_an_answer_is_rendered_with_its_length():
    raw = http1.render(Reply(503, b"{}", {"retry-after": "1"}), keep_alive=False)
    assert raw == (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n"
        b"content-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\r\n{}"
    )
