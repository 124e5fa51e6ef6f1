"""The socket for applications: what is not understood ends a connection, never the agent."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from pathlib import Path

import msgspec
import pytest
from agentkit import layouts
from agentkit.embedding import ROW, Host, crash

from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit_runtime import Session, leases, sockets, wire
from edgekit_runtime.wire import SESSIONS_SOCKET, Frame, FrameKind

ROUNDS = 300
_HEAD = struct.Struct("<BBHII")


@pytest.fixture
def host(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    found = Host(tmp_path / "state", writer.root, sessions_max=3)
    found.device.deploy(1, writer.add(seed=1), "v1")
    yield found
    found.applications.close()
    found.loop.close()


def _connect(host) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(host.root / SESSIONS_SOCKET))
    return sock


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _hello(**changes) -> bytes:
    hello = wire.Hello(model="meter", session="s")
    return Frame(
        FrameKind.HELLO, msgspec.json.encode(msgspec.structs.replace(hello, **changes))
    ).head


def _garbage(random_: random.Random) -> bytes:
    kinds = [*FrameKind, 99]
    choice = random_.randrange(6)
    if choice == 0:
        return random_.randbytes(random_.randrange(1, 400))
    if choice == 1:  # announces more than is allowed, or descriptors that do not come
        return _HEAD.pack(random_.choice(kinds), random_.randrange(20), 0, 2**31, 7)
    if choice == 2:
        return _HEAD.pack(random_.choice(kinds), random_.randrange(1, 16), 0, 2, 0) + b"{}"
    meta = random_.choice([b"", b"{}", b"[]", b"null", b'{"content": 1}', random_.randbytes(20)])
    frame = _HEAD.pack(random_.choice(kinds), 0, 0, len(meta), 0) + meta
    if choice == 3:
        return frame
    return _hello(model=random_.choice(["meter", "x" * 1000, "\0"])) + frame * random_.randrange(3)


def test_garbage_ends_connections_and_disturbs_nobody(host):
    random_ = random.Random(4)
    kept = host.open()
    before = _descriptors()
    for _ in range(ROUNDS):
        with _connect(host) as sock:
            host.turn(1)
            sock.sendall(_garbage(random_))
            if random_.random() < 0.3:  # with descriptors that nobody asked for
                socket.send_fds(sock, [_hello()[:5]], [0, 1, 2])
            host.turn(2)
        host.turn(2)
    assert kept.infer(ROW).counted
    assert kept.connected
    kept.close()
    host.turn()
    host.device.counting.drain()
    host.device.counting.retire()
    assert host.device.counting.produced() == 1
    assert _descriptors() <= before


def test_too_many_and_strangers_are_turned_away_with_a_reason(host, monkeypatch):
    kept = [host.open() for _ in range(3)]
    with pytest.raises(UnavailableError, match="3 sessions are open"):
        host.open()
    for each in kept:
        each.close()
    host.turn()
    monkeypatch.setattr(sockets, "trusted", lambda _uid: False)
    with pytest.raises(UnavailableError, match="belongs to user"):
        host.open()
    monkeypatch.undo()
    with _connect(host) as sock:
        monkeypatch.setattr(sockets, "trusted", lambda _uid: False)
        host.turn()
        assert b"it runs as user" in sock.recv(4096)
    monkeypatch.undo()
    with _connect(host) as sock:
        sock.sendall(_hello(protocol=99))
        host.turn()
        assert b"protocol 99" in sock.recv(4096)


def test_only_the_agents_user_may_connect(host):
    assert (host.root / SESSIONS_SOCKET).stat().st_mode & 0o777 == 0o600


def test_a_region_is_lent_once_and_kept_as_long_as_somebody_counts_in_it(host):
    session = host.open()
    session.infer(ROW)
    (mine,) = [region for region in host.regions() if region.labels.session]
    assert leases.held(mine.path)
    with pytest.raises(BadInputError, match="cannot lend"):
        leases.take(mine.path)
    crash(session)
    assert not leases.held(mine.path)
    leases_again = leases.take(mine.path)
    assert leases.held(mine.path)
    os.close(leases_again)


def test_an_application_that_sleeps_through_generations_hears_only_the_newest(host):
    session = host.open()
    # More than may wait: it is dropped, and finds its way back.
    for gen in range(2, 14):
        host.device.deploy(gen, host.device.model.active.digest, f"again-{gen}")
        host.turn()
    for _ in range(50):
        session._tether._retry_at = 0.0
        session.infer(ROW)
        host.turn()
    assert session.connected
    wanted = host.device.model.active.release
    assert session._held.core.place.region.labels.release == wanted
    assert host.device.counting.produced() == 50
    assert host.device.deployer.workers_ended == 0  # hung up on, and not blamed for it
    session.close()


def test_a_session_is_not_left_half_open(host, monkeypatch):
    path = host.root / SESSIONS_SOCKET
    path.unlink()
    with pytest.raises(UnavailableError):
        Session.open("meter", socket=path)
    assert host.device.deployer.workers_ended == 0


def test_a_refusal_is_heard_also_when_our_first_words_were_never_read(tmp_path):
    refusal = wire.Refusal(error="UnavailableError", message="not today")
    frame = Frame(FrameKind.FAILED, msgspec.json.encode(refusal)).head
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def agent() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                sock.recv(1, socket.MSG_PEEK)  # it has spoken, and nobody reads it
                sock.sendall(frame)
                sock.close()

        thread = threading.Thread(target=agent)
        thread.start()
        for _ in range(2):
            with pytest.raises(UnavailableError, match="not today"):
                Session.open("meter", socket=tmp_path / "s")
        thread.join()
