"""Frames between the agent and a worker over their private socket pair. Pure, but for `Reader`.

``head | meta | body``: the head says what it is and how long the parts are. An inference's meta is
a packed struct and its body the request or answer as it came over HTTP, never decoded by the agent.
The pair belongs to one agent and the worker it started. Nothing is negotiated: a worker process
runs the agent's own code, and an image says which `edgekit.contracts.image.WORKER_PROTOCOL` its
worker speaks before it is ever started. Raise that with a change here that one side could misread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import msgspec

from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BugError
from edgekit.contracts.messages import SlotRef
from edgekit_runtime.region import Kind
from edgekit_runtime.serving import Observation

_HEAD = struct.Struct("<IIQB")  # bytes of meta, bytes of body, sequence, kind
_ASK = struct.Struct("<iB")  # length of the JSON part (-1: all of it), slot
_ANSWER = struct.Struct("<QffiiHBB")
SCRATCH_BYTES = 1 << 16  # small frames share it; a larger one gets room of its own
FRAME_BYTES_MAX = 1 << 30  # a longer one is not from us


class FrameKind(IntEnum):
    """What a frame asks or answers."""

    LOAD = 1  # agent: load this bundle; meta is an `Order`
    LOADED = 2  # worker: done; meta is `Facts`
    FAILED = 3  # worker: cannot; meta is a `Refusal`
    INFER = 4  # agent: body is the request
    ANSWER = 5  # worker: body is the answer
    CANARY = 6  # agent: run the model once, count nothing


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to load."""

    root: str  # folder that holds blobs/sha256
    model: str
    ref: SlotRef
    threads: int
    tested: bool  # replay the golden set first
    memory_bytes_max: int  # 0: no limit
    body_bytes_max: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent must know about a loaded bundle."""

    manifest: BundleManifest
    contract: Contract


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a bundle was not loaded; ``error`` names a class of our error tree."""

    error: str
    message: str
    hint: str | None = None


class Frame(NamedTuple):
    """One frame."""

    kind: int
    seq: int
    meta: bytes
    body: bytes


@dataclass(frozen=True)
class Answer:
    """A worker's answer to one request. ``json_length``: of a binary answer; -1 when all JSON."""

    status: int
    json_length: int
    seen: Observation
    body: bytes


def head(kind: FrameKind, seq: int, meta: bytes, body_length: int) -> bytes:
    """Everything of a frame before its body."""
    return _HEAD.pack(len(meta), body_length, seq, kind) + meta


def pack_ask(json_length: int, slot: int) -> bytes:
    """Meta of INFER."""
    return _ASK.pack(json_length, slot)


def unpack_ask(meta: bytes) -> tuple[int, int]:
    """Reverse of `pack_ask`."""
    json_length, slot = _ASK.unpack(meta)
    return json_length, slot


def pack_answer(status: int, json_length: int, seen: Observation) -> bytes:
    """Meta of ANSWER."""
    return _ANSWER.pack(
        seen.request,
        seen.latency_us,
        seen.confidence,
        seen.cls,
        json_length,
        status,
        seen.kind or 0,
        seen.flags,
    )


def unpack_answer(frame: Frame) -> Answer:
    """The answer in ``frame``."""
    request, latency_us, confidence, cls, json_length, status, kind, flags = _ANSWER.unpack(
        frame.meta
    )
    seen = Observation(Kind(kind) if kind else None, request, latency_us, cls, confidence, flags)
    return Answer(status, json_length, seen, frame.body)


class Reader:
    """Cuts a stream into frames. What is large is received where it stays."""

    def __init__(self) -> None:
        self._scratch = bytearray(SCRATCH_BYTES)
        self._held = 0  # bytes in the scratch buffer
        self._payload: bytearray | None = None  # of a frame that does not fit there
        self._filled = 0
        self._head = (0, 0, 0, 0)

    def room(self) -> memoryview:
        """Where the next bytes are to be received; never empty."""
        if self._payload is not None:
            return memoryview(self._payload)[self._filled :]
        return memoryview(self._scratch)[self._held :]

    def received(self, count: int) -> list[Frame]:
        """Frames completed by ``count`` bytes in `room`.

        Raises:
            BugError: the stream is not one of ours.
        """
        if self._payload is not None:
            self._filled += count
            if self._filled < len(self._payload):
                return []
            payload, self._payload = self._payload, None
            return [_frame(self._head, payload)]
        self._held += count
        found: list[Frame] = []
        start = 0
        while self._held - start >= _HEAD.size:
            head = _HEAD.unpack_from(self._scratch, start)
            length = head[0] + head[1]
            if length > FRAME_BYTES_MAX:
                raise BugError(f"worker frame of {length} bytes")
            first, end = start + _HEAD.size, start + _HEAD.size + length
            if self._held < end:
                if _HEAD.size + length > SCRATCH_BYTES:
                    self._begin(head, first)
                    return found
                break
            found.append(_frame(head, self._scratch[first:end]))
            start = end
        self._scratch[: self._held - start] = self._scratch[start : self._held]
        self._held -= start
        return found

    def _begin(self, head: tuple[int, int, int, int], first: int) -> None:
        self._head = head
        self._payload = bytearray(head[0] + head[1])
        self._filled = self._held - first
        self._payload[: self._filled] = self._scratch[first : self._held]
        self._held = 0


def _frame(head: tuple[int, int, int, int], payload: bytearray) -> Frame:
    meta_length, _, seq, kind = head
    with memoryview(payload) as view:
        return Frame(kind, seq, bytes(view[:meta_length]), bytes(view[meta_length:]))
