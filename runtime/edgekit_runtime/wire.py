"""Frames between the agent and a worker over their private socket pair. Pure, but for `Reader`.

``head | meta | body``: the head says what it is and how long the parts are. An inference's meta is
a packed struct and its body the request or answer as it came over HTTP, never decoded by the agent.
The pair belongs to one agent and the worker it started: there is no version to negotiate.
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
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Frames completed by ``data``.

        Raises:
            BugError: the stream is not one of ours.
        """
        buffer = self._buffer
        buffer += data
        found: list[Frame] = []
        start = 0
        while len(buffer) - start >= _HEAD.size:
            meta_length, body_length, seq, kind = _HEAD.unpack_from(buffer, start)
            if meta_length + body_length > FRAME_BYTES_MAX:
                raise BugError(f"worker frame of {meta_length + body_length} bytes")
            middle = start + _HEAD.size + meta_length
            end = middle + body_length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                meta = bytes(view[start + _HEAD.size : middle])
                found.append(Frame(kind, seq, meta, bytes(view[middle:end])))
            start = end
        del buffer[:start]
        return found
