"""What a worker makes of the answers of the model that feeds it."""

from __future__ import annotations

import os
import re
import socket
import threading

import numpy as np
import pytest

from edgekit.contracts.composition import Link
from edgekit.contracts.errors import UnavailableError
from edgekit_runtime import composition, oip, upstream
from edgekit_runtime.board import Board
from edgekit_runtime.errors import GuardError, NotServingError
from edgekit_runtime.upstream import Upstream

ROWS = {"x": np.ones((1, 4), np.float32)}


@pytest.fixture
def board():
    descriptor = Board.create(4)
    board = Board(descriptor, 4)
    os.close(descriptor)
    return board


@pytest.fixture
def answering(tmp_path, board):
    """Upstream of a server that says these bytes, whatever it is asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    threads, busy = [], []

    def start(*answers: bytes) -> Upstream:
        def serve() -> None:
            for answer in answers:
                sock, _ = listener.accept()
                _read(sock)
                busy.append(board.busy_since_ns)
                sock.sendall(answer)
                sock.close()

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return Upstream(str(tmp_path / "s"), board)

    start.busy = busy
    yield start
    for thread in threads:
        thread.join()
    listener.close()


def _read(sock: socket.socket) -> None:
    """A whole request."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += sock.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE).group(1))
    while len(body) < length:
        body += sock.recv(65536)


def _http(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _answer(name: str = "scores") -> bytes:
    label = oip.Label("meter", "7", "a")
    outputs = {name: np.array([[1, 2, 3]], np.float32)}
    request = oip.InferRequest(inputs=(), parameters={"binary_data_output": True})
    length, body = oip.answer(label, outputs, 0, request, counted=True)
    return _http(200, body, f"Inference-Header-Content-Length: {length}")


def test_an_answer_becomes_arrays_and_a_version(answering, board):
    asked = answering(_answer(), _answer())
    for _ in range(2):  # the connection was closed: there is another
        outputs, version = asked.ask("meter", ROWS, ["scores"], "r-1")
        assert (outputs["scores"].tolist(), version) == ([[1, 2, 3]], "7")
    assert answering.busy == [0, 0]  # who waits for others does not look stuck
    assert board.busy_since_ns > 0


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (_http(400, b'{"error": "x is wrong"}'), GuardError, "meter, .*: x is wrong"),
        (_http(404, b'{"error": "not known"}'), NotServingError, "not known"),
        (_http(503, b"no json"), UnavailableError, "refused without a reason"),
        (_http(200, b"{}"), NotServingError, "meter, which feeds"),
        (_http(200, b"{}", "Inference-Header-Content-Length: z"), NotServingError, "meter"),
        (_answer("other"), NotServingError, "has no output 'scores'"),
        (_answer()[:-4], NotServingError, "did not answer"),
        (b"nonsense\r\n\r\n", NotServingError, "did not answer"),
        (b"", NotServingError, "did not answer"),
    ],
)
def test_answers_that_are_none_are_told_apart(answering, answer, kind, text):
    with pytest.raises(kind, match=text):
        answering(answer).ask("meter", ROWS, ["scores"], None)


def test_nobody_there_and_nobody_in_time(tmp_path, board, monkeypatch):
    with pytest.raises(NotServingError, match="did not answer"):
        Upstream(str(tmp_path / "absent"), board).ask("meter", ROWS, ["scores"], None)
    monkeypatch.setattr(upstream, "ANSWER_S_MAX", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "deaf"))
        listener.listen()
        with pytest.raises(NotServingError, match="timed out"):
            Upstream(str(tmp_path / "deaf"), board).ask("meter", ROWS, ["scores"], None)


def test_each_feeder_is_asked_once_and_what_is_given_is_kept():
    links = [
        Link(input="s", model="a", output="o1", inputs=("x",)),
        Link(input="t", model="a", output="o2", inputs=("x",)),
        Link(input="u", model="b", output="o", inputs=("x", "z")),
    ]
    asked = []

    def ask(model, arrays, names):
        asked.append((model, sorted(arrays), list(names)))
        return {name: np.zeros(1) for name in names}, f"{model}-1"

    arrays = {"x": np.ones(1), "z": np.ones(1), "w": np.ones(1)}
    fed, versions = composition.feed(links, {"s", "t", "u", "w"}, arrays, ask)
    assert asked == [("a", ["x"], ["o1", "o2"]), ("b", ["x", "z"], ["o"])]
    assert sorted(fed) == ["s", "t", "u", "w"]
    assert versions == {"a": "a-1", "b": "b-1"}
    fed, versions = composition.feed(links, {"s", "t", "u", "x"}, {**arrays, "u": np.ones(1)}, ask)
    assert versions == {"a": "a-1"}
    # What a model takes itself stays; what nobody takes is for its guard to refuse.
    assert sorted(fed) == ["s", "t", "u", "w", "x", "z"]
