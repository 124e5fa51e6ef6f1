"""Frames, and descriptors, between the agent and whoever holds a model: a worker, an application.

``head | meta | body``: the head says what it is, how long the parts are and how many descriptors
came along (SCM_RIGHTS). Inference does not pass here: what does are orders, connections and signs
of life. A worker's socket belongs to one agent and the worker it started. Nothing is negotiated: a
worker process runs the agent's own code, and an image says which
`edgekit.contracts.image.WORKER_PROTOCOL` its worker speaks before it is ever started. Raise that
with a change here that one side could misread. An application that embeds a model connects by
itself and may run older code: it says its `SESSION_PROTOCOL` first.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.composition import Link
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BugError
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.reference import Reference
from edgekit.contracts.shadow import Expectation

if TYPE_CHECKING:
    from edgekit_runtime.region import Region
    from edgekit_runtime.serving import Live

_HEAD = struct.Struct("<BBHII")  # kind, descriptors, unused, bytes of meta, bytes of body
_HANDED = struct.Struct("<IB")  # number, flags: the client has stopped sending, the other arm's
RECEIVE_BYTES = 1 << 17
DESCRIPTORS_MAX = 16  # of one frame
FRAME_BYTES_MAX = 1 << 30  # a longer one is not from us
SESSION_PROTOCOL = 1
SESSION_FRAME_BYTES_MAX = 64 * 1024  # applications send short documents
SESSIONS_SOCKET = "sessions.sock"  # in the state folder


class FrameKind(IntEnum):
    """What a frame says."""

    # from the agent
    LOAD = 1  # load this bundle; meta is an `Order`, the descriptor a board
    SERVE = 2  # count in these regions from now on; meta is a `Grant`, the descriptors regions
    TAKE = 3  # answer this connection; body is what was received and not answered
    RETIRE = 4  # give every connection back; with meta: when what is queued is answered
    CANARY = 5  # run the model once, count nothing
    SAMPLE = 8  # send on a share of what you answer; meta is a `Sampling`, the descriptor where to
    FOLLOW = 9  # compare what comes with your own answers; meta is a `Following`, the descriptors
    # what it comes from (a socket, or a memory file to be gone through once) and a region
    DIVIDE = 10  # answer requests of one arm only, give the others back; meta is a `Division`
    # from the agent, to an application
    ACTIVE = 6  # run this bundle; meta is an `Active`, the descriptors regions like SERVE's
    ABSENT = 7  # there is nothing to run; meta is a `Refusal`
    # from the worker
    LOADED = 16  # meta is `Facts`
    FAILED = 17  # cannot be loaded; meta is a `Refusal`
    SERVING = 18  # the regions of the last SERVE are in use, earlier ones no longer
    BACK = 19  # a connection whose next request is not for this worker; body like TAKE's
    GONE = 20  # a connection has ended
    RETIRED = 21  # everything counted, everything given back
    FOLLOWED = 22  # the memory file of the last FOLLOW has been gone through
    DIVIDED = 23  # the last DIVIDE holds from here on
    # from an application
    HELLO = 32  # meta is a `Hello`
    LOADING = 33  # about to load; meta is a `Content`
    USING = 34  # it runs, and is counted where the newest ACTIVE says; meta is a `Content`
    UNABLE = 35  # it cannot be loaded there; meta is an `Unable`
    GOODBYE = 36  # ends in order


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to load, and how much it may take at once."""

    root: str  # folder that holds blobs/sha256
    model: str
    ref: SlotRef
    threads: int
    cores: tuple[int, ...]  # to run on; (): all that this process may
    tested: bool  # replay the golden set first
    memory_bytes_max: int  # 0: no limit
    body_bytes_max: int
    bodies_bytes_max: int
    requests_max: int
    connections_max: int
    client_s_max: float
    socket: str = ""  # of the agent: where other models on this device are asked


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Where to count: the first region that came along; the others hold earlier request ids."""

    slot: str
    version: str
    compose: tuple[Link, ...] = ()


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What share of the answers is sampled; without a descriptor to where it went before."""

    share: float
    bytes_max: int = 0  # of a memory file; 0: the descriptor is a socket's
    end: bool = False  # close what samples went to


class Following(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are compared; ``once``: the samples lie in a memory file."""

    abs: float
    rel: float
    once: bool = False


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are whose: the second arm has the ``share`` of them; 0: the first has all."""

    share: float
    second: bool = False  # this worker is the second arm
    beside: str = ""  # digest of the second arm's bundle; whose ring is its own


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent must know about a loaded bundle."""

    manifest: BundleManifest
    contract: Contract
    reference: Reference | None = None
    expectation: Expectation | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a bundle was not loaded; ``error`` names a class of our error tree."""

    error: str
    message: str
    hint: str | None = None


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """An application's first words."""

    protocol: int = SESSION_PROTOCOL
    model: str
    session: str  # drawn at random when it was opened
    region: str = ""  # where it counts, when it comes back
    content: str = ""  # and what it runs


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """What an application is to run: the bundle, and what it is called."""

    root: str  # folder that holds blobs/sha256
    ref: SlotRef
    slot: str
    threads: int
    keep: bool  # go on counting where it does; else in the first region that came along


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle, as `SlotRef.content` names it."""

    content: str


class Unable(msgspec.Struct, frozen=True, kw_only=True):
    """An application goes on with what it had."""

    content: str
    message: str


class Frame(NamedTuple):
    """One frame. Whoever reads it owns its descriptors."""

    kind: int
    meta: bytes = b""
    body: bytes = b""
    descriptors: tuple[int, ...] = ()

    @property
    def head(self) -> bytes:
        """Everything before the body."""
        counts = len(self.descriptors), 0, len(self.meta), len(self.body)
        return _HEAD.pack(self.kind, *counts) + self.meta


def handed(
    kind: FrameKind,
    number: int,
    unread: bytes,
    *,
    ended: bool,
    other: bool = False,
    descriptor: int | None = None,
) -> Frame:
    """A frame that hands a connection on; ``other``: its first request is the other arm's."""
    descriptors = () if descriptor is None else (descriptor,)
    return Frame(kind, _HANDED.pack(number, ended | other << 1), unread, descriptors)


def read_handed(frame: Frame) -> tuple[int, bool]:
    """Number of the connection, and whether its client has stopped sending."""
    number, flags = _HANDED.unpack(frame.meta)
    return number, bool(flags & 1)


def is_other(frame: Frame) -> bool:
    """Whether an arm has said that the connection's first request is the other's."""
    return bool(_HANDED.unpack(frame.meta)[1] & 2)


def grant(live: Live, regions: Sequence[Region]) -> Frame:
    """Have a worker count as ``live``; it looks earlier request ids up in the other ``regions``."""
    descriptors = tuple(region.descriptor for region in regions)
    order = Grant(slot=live.slot, version=live.ref.version, compose=live.ref.compose)
    return Frame(FrameKind.SERVE, msgspec.json.encode(order), b"", descriptors)


class Channel:
    """One end of the socket. Not thread-safe."""

    def __init__(self, sock: socket.socket, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.socket = sock
        self._frame_bytes_max = frame_bytes_max
        self._data = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, tuple[int, ...]]] = deque()

    @property
    def unsent(self) -> bool:
        """Whether something waits until the other end reads."""
        return bool(self._unsent)

    def receive(self) -> list[Frame] | None:
        """Frames that one read completed; None when the other end is gone.

        Raises:
            BlockingIOError: nothing to read.
            OSError: the socket broke, or a timeout.
            BugError: the stream is not one of ours.
        """
        data, descriptors, _, _ = socket.recv_fds(self.socket, RECEIVE_BYTES, DESCRIPTORS_MAX)
        self._descriptors += descriptors
        if not data:
            return None
        self._data += data
        return self._cut()

    def send(self, frame: Frame) -> None:
        """Send a frame, later if the socket has no room; its descriptors are copied.

        Raises:
            OSError: the other end is gone.
        """
        copies = tuple(os.dup(descriptor) for descriptor in frame.descriptors)
        self._unsent.append((memoryview(frame.head), copies))
        if frame.body:
            self._unsent.append((memoryview(frame.body), ()))
        self.flush()

    def flush(self) -> None:
        """Send what is unsent. Raises like `send`."""
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                if descriptors:
                    sent = socket.send_fds(self.socket, [data], descriptors)
                else:
                    sent = self.socket.send(data)
            except BlockingIOError:
                return
            _close(descriptors)  # they travel with the first byte
            self._unsent.popleft()
            if sent < len(data):
                self._unsent.appendleft((data[sent:], ()))

    def close(self) -> None:
        """Close the socket and every descriptor on its way."""
        for _, descriptors in self._unsent:
            _close(descriptors)
        _close(tuple(self._descriptors))
        self._unsent.clear()
        self._descriptors.clear()
        self.socket.close()

    def _cut(self) -> list[Frame]:
        found: list[Frame] = []
        start = 0
        while len(self._data) - start >= _HEAD.size:
            kind, descriptors, _, meta_length, body_length = _HEAD.unpack_from(self._data, start)
            length = meta_length + body_length
            if length > self._frame_bytes_max or descriptors > DESCRIPTORS_MAX:
                raise BugError(f"frame of {length} bytes and {descriptors} descriptors")
            body = start + _HEAD.size + meta_length
            if len(self._data) < body + body_length:
                break
            if len(self._descriptors) < descriptors:
                raise BugError(f"frame without its {descriptors} descriptors")
            mine = tuple(self._descriptors.popleft() for _ in range(descriptors))
            found.append(
                Frame(
                    kind,
                    bytes(self._data[body - meta_length : body]),
                    bytes(self._data[body : body + body_length]),
                    mine,
                )
            )
            start = body + body_length
        del self._data[:start]
        return found


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
