"""A worker's desk on real sockets, with an answerer of the test's own."""

from __future__ import annotations

import os
import socket
import threading
from types import SimpleNamespace

import pytest

from edgekit.contracts.messages import SlotRef
from edgekit_runtime import wire
from edgekit_runtime.board import Board, Grip
from edgekit_runtime.desk import Desk
from edgekit_runtime.http1 import Reply
from edgekit_runtime.samples import Disagreements
from edgekit_runtime.wire import Channel, Frame, FrameKind

NUMBERS = 8
ASK = b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 1\r\n\r\nx"
ELSEWHERE = b"GET /metrics HTTP/1.1\r\n\r\n"
ORDER = wire.Order(
    root="/", model="m", threads=1, cores=(), tested=False, memory_bytes_max=0, body_bytes_max=1000,
    bodies_bytes_max=1000, requests_max=2, connections_max=NUMBERS, client_s_max=30.0,
    ref=SlotRef(digest="d", version="1", target="t", release="r", rollout="o", wave=0),
)  # fmt: skip


class Answers:
    seen = answered = None
    disagreements = Disagreements()
    splitting = SimpleNamespace(elsewhere=lambda request, _route: request.body == b"b")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def answer(self, _request, _route) -> Reply:
        self.begun.set()
        assert self.go.wait(30)
        return Reply(200, self.body)


class Worker:
    """The desk in a thread; this side is the agent's."""

    def __init__(self, body: bytes = b"ok") -> None:
        descriptor = Board.create(NUMBERS)
        self.board = Board(descriptor, NUMBERS)
        os.close(descriptor)
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        theirs.setblocking(False)
        self.channel, self.answers = Channel(ours), Answers(body)
        self._desk = Desk(ORDER, self.answers, self.board, Channel(theirs))
        self._thread = threading.Thread(target=self._desk.run, args=(self._handle,))
        self._thread.start()
        self.frames: list[Frame] = []
        self._theirs, self._near = theirs, []

    def _handle(self, frame: Frame) -> None:
        if frame.kind == FrameKind.TAKE:
            self._desk.take(frame)
        else:
            self._desk.retire(answer=bool(frame.meta))

    def client(self, number: int, held: bytes = b"") -> socket.socket:
        near, far = socket.socketpair()
        near.settimeout(30)
        self._near.append(near)
        self.channel.send(
            wire.handed(FrameKind.TAKE, number, held, ended=False, descriptor=far.fileno())
        )
        far.close()
        return near

    def hears(self) -> Frame:
        while not self.frames:
            self.frames += self.channel.receive() or []
        return self.frames.pop(0)

    def back(self) -> tuple[int, bytes]:
        frame = self.hears()
        assert frame.kind == FrameKind.BACK
        return wire.read_handed(frame)[0], frame.body

    def close(self) -> None:
        self.answers.go.set()
        self.channel.close()
        self._thread.join(30)
        assert not self._thread.is_alive()
        for each in (*self._near, self._theirs):
            each.close()


@pytest.fixture
def worker():
    found = Worker()
    yield found
    found.close()


def _status(client: socket.socket) -> bytes:
    return client.recv(65536)[9:12]


def test_what_is_not_for_this_model_goes_back_with_its_bytes(worker):
    client = worker.client(3, ASK + ASK[:30])
    assert _status(client) == b"200"
    client.sendall(ASK[30:])
    assert _status(client) == b"200"
    client.sendall(ELSEWHERE + ASK)
    assert worker.back() == (3, ELSEWHERE + ASK)
    assert worker.board.grips[3] == Grip.NONE


def test_a_retired_worker_gives_back_what_it_has_not_answered(worker):
    worker.answers.go.clear()
    first, second = worker.client(0, ASK), worker.client(1)
    assert worker.answers.begun.wait(30)
    second.sendall(ASK)
    worker.client(2)
    worker.channel.send(Frame(FrameKind.RETIRE))
    worker.answers.go.set()
    assert _status(first) == b"200"
    found = dict(worker.back() for _ in range(3))
    assert found == {0: b"", 1: found[1], 2: b""}
    assert found[1] in {ASK, b""}  # received by then, or still in the socket
    assert worker.hears().kind == FrameKind.RETIRED


def test_a_slow_reader_is_given_back_when_it_has_its_answer():
    worker = Worker(b"z" * (8 << 20))
    client = worker.client(5, ASK)
    assert worker.answers.begun.wait(30)
    worker.channel.send(Frame(FrameKind.RETIRE))
    assert worker.hears().kind == FrameKind.RETIRED
    assert worker.board.grips[5] == Grip.ANSWERING
    data = 0
    while data < 8 << 20:
        data += len(client.recv(1 << 20))
    assert worker.back() == (5, b"")
    worker.close()


def test_one_request_too_many_is_told_to_come_again(worker):
    worker.answers.go.clear()
    clients = [worker.client(number) for number in range(5)]
    worker.client(7, ELSEWHERE)
    assert worker.back()[0] == 7  # all are taken by now
    clients[0].sendall(ASK)
    assert worker.answers.begun.wait(30)
    for client in clients[1:]:
        client.sendall(ASK)
    worker.answers.go.set()
    found = [_status(client) for client in clients]
    assert found[0] == b"200"
    assert found.count(b"429") == len(clients) - 1 - ORDER.requests_max
    assert worker.board.refusals[429] == found.count(b"429")


def test_a_client_that_goes_away_is_told_of(worker):
    worker.client(4).close()
    frame = worker.hears()
    assert (frame.kind, wire.read_handed(frame)[0]) == (FrameKind.GONE, 4)


def test_a_request_of_the_other_arm_goes_back_once(worker):
    others = ASK[:-1] + b"b"
    client = worker.client(6, others + ASK)
    frame = worker.hears()
    assert (frame.kind, frame.body) == (FrameKind.BACK, others + ASK)
    assert wire.is_other(frame)
    near, far = socket.socketpair()
    near.settimeout(30)
    taken = wire.handed(
        FrameKind.TAKE, 6, frame.body, ended=False, other=True, descriptor=far.fileno()
    )
    worker.channel.send(taken)  # the other arm said so: it is answered, and the next one looked at
    far.close()
    answers = b""
    while answers.count(b"HTTP/1.1 200") < 2:
        answers += near.recv(65536)
    near.sendall(others)
    assert worker.back() == (6, others)
    near.close()
    client.close()
