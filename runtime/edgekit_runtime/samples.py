"""Samples of what was answered, on their way to a candidate in the shadow.

``length of the meta | length of the body | meta | body``, over a socket between two workers, or
into a memory file that is replayed later. A sample that finds no room is dropped and counted:
whoever answers requests waits for nobody. Over a socket the candidate says back which requests it
would have answered otherwise, eight bytes each.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from edgekit.contracts.errors import BugError
from edgekit_runtime.loop import READ, WRITE, Loop
from edgekit_runtime.ports import Array

_HEAD = struct.Struct("<II")
_FILE = struct.Struct("<QQQ")  # bytes used, samples, samples that found no room
_REQUEST = struct.Struct("<Q")
RECEIVE_BYTES = 1 << 17
DISAGREEMENTS_MAX = 4096  # as many requests as a ring of counts holds
SAMPLE_BYTES_MAX = 1 << 30  # a longer one is not from us
Tensors = tuple[tuple[str, str, tuple[int, ...]], ...]  # name, dtype, shape


class _Meta(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    request: int
    dropped: int
    inputs: Tensors
    outputs: Tensors


class Sample(NamedTuple):
    """What was asked and answered; ``dropped``: samples lost before this one."""

    request: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    dropped: int = 0


def encode(sample: Sample) -> bytes:
    """The sample's bytes."""
    meta = _Meta(
        request=sample.request,
        dropped=sample.dropped,
        inputs=_tensors(sample.inputs),
        outputs=_tensors(sample.outputs),
    )
    arrays = [*sample.inputs.values(), *sample.outputs.values()]
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    raw = msgspec.json.encode(meta)
    return b"".join((_HEAD.pack(len(raw), len(body)), raw, body))


def decode(data: bytearray | memoryview, start: int = 0) -> tuple[Sample, int] | None:
    """The sample at ``start`` and where the next one begins; None while it is not whole.

    Raises:
        BugError: it is not one of ours.
    """
    view = memoryview(data)[start:]
    if len(view) < _HEAD.size:
        return None
    meta_length, body_length = _HEAD.unpack_from(view)
    total = _HEAD.size + meta_length + body_length
    if total > SAMPLE_BYTES_MAX:
        raise BugError(f"sample of {total} bytes")
    if len(view) < total:
        return None
    meta = msgspec.json.decode(view[_HEAD.size : _HEAD.size + meta_length], type=_Meta)
    body = bytes(view[_HEAD.size + meta_length : total])
    arrays: list[Array] = []
    at = 0
    for _, dtype, shape in (*meta.inputs, *meta.outputs):
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(body, kind, count, at).reshape(shape))
        at += count * kind.itemsize
    names = len(meta.inputs)
    inputs = {tensor[0]: array for tensor, array in zip(meta.inputs, arrays, strict=False)}
    outputs = {tensor[0]: array for tensor, array in zip(meta.outputs, arrays[names:], strict=True)}
    return Sample(meta.request, inputs, outputs, meta.dropped), start + total


def _tensors(arrays: Mapping[str, Array]) -> Tensors:
    return tuple((name, array.dtype.str, array.shape) for name, array in arrays.items())


class Disagreements:
    """The newest requests that a candidate would have answered otherwise, by `journal.hash_id`."""

    def __init__(self) -> None:
        self._known: dict[int, None] = {}
        self._rest = b""

    def __contains__(self, request: int) -> bool:
        return request in self._known

    def hear(self, data: bytes) -> None:
        """What a candidate said, in pieces of any length."""
        data = self._rest + data
        whole = len(data) - len(data) % _REQUEST.size
        self._rest = data[whole:]
        self._known |= dict.fromkeys(found for (found,) in _REQUEST.iter_unpack(data[:whole]))
        for oldest in list(self._known)[:-DISAGREEMENTS_MAX]:
            del self._known[oldest]

    def clear(self) -> None:
        """Another candidate follows from now on."""
        self._known.clear()
        self._rest = b""


class Sampler:
    """The sending side, in the worker that answers. Belongs to its loop's thread."""

    def __init__(self, loop: Loop, disagreements: Disagreements) -> None:
        """What a candidate says lands in ``disagreements``."""
        self._loop = loop
        self._disagreements = disagreements
        self._share = 0.0
        self._socket: socket.socket | None = None
        self._file: Buffer | None = None
        self._rest = memoryview(b"")
        self._dropped = 0

    def begin(self, descriptor: int, bytes_max: int) -> None:
        """Send to another place from now on; takes the descriptor over.

        Args:
            descriptor: a socket's, or a memory file's.
            bytes_max: of the file; 0: it is a socket.
        """
        self.end()
        self._disagreements.clear()
        if bytes_max:
            self._file = Buffer(descriptor, bytes_max)
            return
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._loop.watch(descriptor, READ, self._ready)

    def rate(self, share: float) -> None:
        """Sample so large a share of the answers."""
        self._share = share

    def end(self) -> None:
        """Send nothing more."""
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        if self._file is not None:
            self._file.close()
        self._socket = self._file = None
        self._rest, self._dropped = memoryview(b""), 0

    def offer(
        self, request: int, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """Something was answered: send it, if it is its turn and there is room. Never waits."""
        if self._share <= 0.0 or random.random() >= self._share:
            return
        if self._file is None and (self._socket is None or self._rest):
            self._dropped += 1
            return
        try:
            data = encode(Sample(request, inputs, outputs, self._dropped))
        except MemoryError:  # what was answered is answered: no reason to end
            self._dropped += 1
            return
        if self._file is not None:
            self._file.add(data)
        elif self._socket is not None:
            self._send(self._socket, memoryview(data), begun=False)

    def _ready(self, events: int) -> None:
        if self._socket is None:
            return
        if events & ~WRITE:
            self._hear(self._socket)
        if events & WRITE and self._socket is not None:
            self._send(self._socket, self._rest, begun=True)

    def _hear(self, sock: socket.socket) -> None:
        try:
            said = sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            self._disagreements.hear(said)
        else:
            self.end()  # nobody reads any more

    def _send(self, sock: socket.socket, data: memoryview, *, begun: bool) -> None:
        try:
            sent = sock.send(data)
        except BlockingIOError:
            self._dropped += not begun
            return
        except OSError:
            self.end()  # the candidate is gone; who it was for knows
            return
        if not begun:
            self._dropped = 0
        self._rest = data[sent:]
        self._loop.change(sock.fileno(), READ | WRITE if self._rest else READ)


class Buffer:
    """Samples in a memory file of at most ``bytes_max`` bytes that several processes share."""

    def __init__(self, descriptor: int, bytes_max: int) -> None:
        self.descriptor = descriptor
        self.bytes_max = bytes_max
        self._closer = weakref.finalize(self, os.close, descriptor)  # with us at the latest

    @classmethod
    def create(cls, bytes_max: int) -> Buffer:
        """An empty one. Raises `OSError`."""
        descriptor = os.memfd_create("edgekit-samples", os.MFD_CLOEXEC)
        os.pwrite(descriptor, _FILE.pack(0, 0, 0), 0)
        return cls(descriptor, bytes_max)

    @property
    def samples(self) -> int:
        """How many there are."""
        return self._figures()[1]

    @property
    def dropped(self) -> int:
        """How many found no room."""
        return self._figures()[2]

    def add(self, data: bytes) -> None:
        """Keep a sample, or count that it does not fit. One process does this."""
        used, count, dropped = self._figures()
        at = _FILE.size + used
        if at + len(data) > self.bytes_max:
            dropped += 1
        else:
            os.pwrite(self.descriptor, data, at)
            used, count = used + len(data), count + 1
        os.pwrite(self.descriptor, _FILE.pack(used, count, dropped), 0)

    def read(self) -> Iterator[Sample]:
        """What is there by now."""
        used, _, dropped = self._figures()
        data = memoryview(os.pread(self.descriptor, used, _FILE.size))
        at = 0
        while (found := decode(data, at)) is not None:
            sample, at = found
            yield sample._replace(dropped=dropped)
            dropped = 0  # said once

    def close(self) -> None:
        """Close our descriptor."""
        self._closer()

    def _figures(self) -> Sequence[int]:
        return _FILE.unpack(os.pread(self.descriptor, _FILE.size, 0))


class Source:
    """The receiving side of a socket, in the candidate's worker."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self._data = bytearray()
        self._next: Sample | None = None

    @property
    def ready(self) -> bool:
        """Whether a whole sample was received and not taken."""
        return self._next is not None

    def next(self) -> Sample | None:
        """A sample received whole before, if there is one."""
        found, self._next = self._next, None
        self._cut()
        return found

    def _cut(self) -> None:
        found = decode(self._data) if self._next is None else None
        if found is not None:
            self._next, end = found
            del self._data[:end]

    def receive(self) -> bool:
        """Read once; False when nobody sends any more."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except OSError:
            return False
        self._data += data
        self._cut()
        return bool(data)

    def disagree(self, request: int) -> None:
        """Say that ``request`` would have been answered otherwise. Waits for nobody, either."""
        with contextlib.suppress(OSError):
            self.socket.send(_REQUEST.pack(request), socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Hang up: whoever sends notices."""
        self.socket.close()
