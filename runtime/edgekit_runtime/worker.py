"""A worker process: holds one model and answers the connections its agent hands to it.

Forked by an agent that starts (`edgekit_runtime.head_start`), later started as ``python -m
edgekit_runtime.worker FD``, FD being a connected Unix socket, or in a container with the path of a
socket instead. The agent accepts connections and passes them here as descriptors; requests and
answers never pass through the agent. What is answered is counted before, in the agent's regions,
which are shared memory. One inference at a time. A worker ends with its agent, however that ends,
even in the middle of an inference.

Here it starts and loads; what it does then is `edgekit_runtime.holder`.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np

from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import (
    bundles,
    engines,
    fitness,
    launch,
    predictor,
    process_facts,
    quiet,
    turns,
    wire,
)
from edgekit_runtime.board import Board
from edgekit_runtime.early import Early
from edgekit_runtime.errors import UnsuitableError, is_memory
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.stderr import Lossy
from edgekit_runtime.wire import Channel, Frame, FrameKind


def _serve(channel: Channel, early: Early | None) -> None:
    """Load what the agent orders, then do what it says until it hangs up."""
    engines.preload()
    if early is not None:
        with turns.quick():  # its thread needs the interpreter now and then
            _import_holder()
    frames = channel.receive()
    if frames is None:
        return
    (frame,) = frames  # it waits for our answer
    order = msgspec.json.decode(frame.meta, type=wire.Order)
    (descriptor,) = frame.descriptors
    board = Board(descriptor, order.connections_max)
    os.close(descriptor)
    try:
        loaded = _load(order, early)
    except (EdgekitError, MemoryError) as exc:
        channel.send(Frame(FrameKind.FAILED, msgspec.json.encode(_refusal(exc))))
        channel.receive()  # it hangs up
        return
    from edgekit_runtime.holder import Holder  # noqa: PLC0415 - see _import_holder

    gc.freeze()  # what is loaded stays: no collection is to walk through it
    gc.enable()
    quiet.end()  # from now on somebody may wait
    facts = wire.Facts(
        manifest=loaded.manifest,
        contract=loaded.contract,
        reference=loaded.reference,
        expectation=loaded.expectation,
    )
    channel.send(Frame(FrameKind.LOADED, msgspec.json.encode(facts)))
    Holder(channel, order, board, loaded).run()


def _load(order: wire.Order, early: Early | None) -> Predictor:
    _pin(order.cores)
    if order.memory_bytes_max:
        _limit_memory(order.memory_bytes_max)
    with turns.quick():
        if early is None:
            threading.Thread(target=_import_holder, daemon=True).start()
            reader = LayoutReader(Path(order.root))
            opened, engine = bundles.open_promised(reader, order.model, order.ref), None
        else:
            opened, engine = early.bundle, early.engine(order.threads)
        loaded = predictor.load(opened, threads=order.threads, engine=engine)
    if order.tested:
        fitness.warm_up(loaded)
    return loaded


def _import_holder() -> None:
    """While the engine makes its session, which does not need the interpreter."""
    import logging  # noqa: PLC0415

    logging.basicConfig(stream=sys.stderr, format="%(levelname).1s worker: %(message)s", force=True)
    from edgekit_runtime import holder  # noqa: PLC0415

    holder.prepare()


def _refusal(exc: EdgekitError | MemoryError) -> wire.Refusal:
    if isinstance(exc, MemoryError) or is_memory(exc):
        return wire.Refusal(error="ResourceError", message="out of memory while loading")
    kinds = (UnsuitableError, ResourceError, BadInputError)
    name = next((kind.__name__ for kind in kinds if isinstance(exc, kind)), "UnsuitableError")
    return wire.Refusal(error=name, message=exc.message, hint=exc.hint)


def _pin(cores: tuple[int, ...]) -> None:
    """Run on ``cores`` from here on, and whatever thread the engine starts.

    Raises:
        UnsuitableError: this device has none of them, or may not use them.
    """
    if not cores:
        return
    here = os.sched_getaffinity(0)
    wanted = here.intersection(cores)
    if not wanted:
        raise UnsuitableError(
            f"cores {list(cores)}: none of them is here, which has {sorted(here)}",
            hint="other policy.cores, or none",
        )
    os.sched_setaffinity(0, wanted)


def _limit_memory(bytes_max: int) -> None:
    """Bound private writable memory (Linux 4.7 and newer) from here on."""
    limit = (process_facts.data_bytes() or 0) + bytes_max
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _end_with_agent(sock: socket.socket) -> NoReturn:
    """Waits beside a running inference: a hung model must not outlive the agent."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    poll.poll()
    _end()


def _end() -> NoReturn:
    """Nothing of it is needed any more: nothing is torn down but by the kernel."""
    quiet.fade()
    os._exit(0)


def main(where: str, early: Early | None = None) -> NoReturn:
    """Serve the socket that ``where`` names: a descriptor's number, or a path.

    ``early`` is what the agent will order first, if that was verified already.
    """
    process_facts.call(launch.WORKER_NAME)
    # Ctrl-C and a service manager's stop reach the whole group; the agent drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stderr = Lossy()
    faulthandler.enable()
    np.seterr(all="ignore")  # what overflows becomes infinite, and the guard says so
    sock = launch.channel(where)
    threading.Thread(target=_end_with_agent, args=(sock,), daemon=True).start()
    _serve(Channel(sock), early)
    _end()


if __name__ == "__main__":
    main(sys.argv[1])
