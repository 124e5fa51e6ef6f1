"""Link from the worker that answers to a candidate in its shadow: a socket of their own.

The agent makes it and sees none of the samples. Whatever happens to the candidate, the worker that
answers only finds its socket closed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from edgekit_runtime.loop import Loop
from edgekit_runtime.serving import Companion
from edgekit_runtime.supervision import Ending
from edgekit_runtime.wire import Following, Frame, FrameKind, Sampling
from edgekit_runtime.worker_model import WorkerModel


class ShadowLink:
    """One lane's. Belongs to the front's thread."""

    def __init__(self, loop: Loop, ended: Callable[[], None]) -> None:
        """No candidate yet; ``ended`` is called when one has ended untold."""
        self._loop = loop
        self._ended = ended
        self._from: WorkerModel | None = None
        self._to: Companion | None = None

    @property
    def follower(self) -> WorkerModel | None:
        """The candidate's worker, while it follows."""
        return _worker(self._to) if self._to is not None else None

    def sync(self, answering: WorkerModel | None, wanted: Companion | None) -> None:
        """Have ``answering`` send samples to where ``wanted`` says."""
        if wanted is not None and (wanted.split or answering is None):
            wanted = None
        before, self._to = self._to, wanted
        changed = answering is not self._from or _place(before) != _place(wanted)
        self._from = answering
        if answering is None or wanted is before:
            return
        if wanted is None:
            answering.send(_sample(Sampling(share=0.0, end=True)))
        elif not changed:
            answering.send(_sample(Sampling(share=wanted.share)))
        elif wanted.buffer is not None:
            sampling = Sampling(share=wanted.share, bytes_max=wanted.buffer.bytes_max)
            answering.send(_sample(sampling, wanted.buffer.descriptor))
        else:
            self._connect(answering, wanted)

    def lost(self) -> None:
        """What answers has ended, or is about to: whoever comes next is linked anew."""
        self._from = self._to = None

    def _connect(self, answering: WorkerModel, wanted: Companion) -> None:
        follower = _worker(wanted)
        if follower is None:
            return
        near, far = socket.socketpair()
        with near, far:
            follower.attach(self._loop, lambda _worker, _frame: None, self._failed)
            follower.region = wanted.region
            order = msgspec.json.encode(Following(abs=wanted.abs, rel=wanted.rel))
            descriptors = (far.fileno(), wanted.region.descriptor)
            follower.send(Frame(FrameKind.FOLLOW, order, descriptors=descriptors))
            answering.send(_sample(Sampling(share=wanted.share), near.fileno()))

    def _failed(self, worker: WorkerModel, _ending: Ending) -> None:
        if worker is self.follower:
            self._to = None
        self._ended()


def _sample(sampling: Sampling, *descriptors: int) -> Frame:
    return Frame(FrameKind.SAMPLE, msgspec.json.encode(sampling), descriptors=descriptors)


def _worker(companion: Companion) -> WorkerModel | None:
    loaded = companion.live.loaded if companion.live is not None else None
    return loaded if isinstance(loaded, WorkerModel) and loaded.failure is None else None


def _place(companion: Companion | None) -> tuple[object, object]:
    if companion is None:
        return None, None
    return companion.live.loaded if companion.live else None, companion.buffer
