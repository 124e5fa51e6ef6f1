"""Runs the front on its sockets until told to stop."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from time import monotonic, monotonic_ns

from edgekit.contracts.errors import EdgekitError, UnavailableError, translate_os_errors
from edgekit_runtime import notify
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.notify import Notifier
from edgekit_runtime.wiring import Built

BACKLOG = 128
WATCH_S = 0.1  # between looks at workers and clients
STEP_S_MAX = 60.0  # of the control thread; its disk may be slow, but not for ever
GRACE_S = 10.0  # requests that were received get this long after a stop
LOOPBACK = "127.0.0.1"  # there is no authentication: never another address


def bind(config: AgentConfig) -> list[socket.socket]:
    """Listening sockets: the Unix socket, and the loopback port if one is configured.

    Raises:
        UnavailableError: the port is in use.
        BadInputError: the socket's folder cannot be written.
    """
    sockets = [] if config.serve.port is None else [_bind_loopback(config.serve.port)]
    try:
        sockets.append(_bind_unix(config.socket_path))
    except EdgekitError:
        for bound in sockets:
            bound.close()
        raise
    return sockets


def _bind_loopback(port: int) -> socket.socket:
    # Named in full: asyncio switches Nagle's algorithm off only for sockets that say TCP, and with
    # it an answer waits 40 ms for the client's delayed acknowledgement.
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        tcp.bind((LOOPBACK, port))
    except OSError as exc:
        tcp.close()
        raise UnavailableError(
            f"port {port}: {exc.strerror}", hint="choose another [serve] port"
        ) from exc
    tcp.listen(BACKLOG)
    return tcp


def _bind_unix(path: Path) -> socket.socket:
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with translate_os_errors("listen on", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Left by an agent that was killed; the state lock says that it is dead.
        path.unlink(missing_ok=True)
        unix.bind(str(path))
        os.chmod(path, 0o660)  # noqa: PTH101 - the application's group may connect
        unix.listen(BACKLOG)
    return unix


def serve(built: Built, sockets: list[socket.socket], state_dir: Path) -> None:
    """Serve until SIGTERM, SIGINT or the end of the control thread."""
    stopping: list[bool] = []

    def stop(*_: object) -> None:
        stopping.append(True)
        built.loop.post(lambda: None)  # wakes it

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    for each in sockets:
        built.front.listen(each)
    built.applications.listen(state_dir)
    built.agent.on_end = stop
    built.agent.start()
    notifier = Notifier(os.environ)
    if built.pipelines is not None:
        built.pipelines.start()
    notifier.send(notify.READY)
    try:
        watch = _Watch(built, notifier)
        while not stopping:
            watch.turn()
        notifier.send(notify.STOPPING)
        _end_pipelines(built, watch)
        built.front.drain()
        end = monotonic() + GRACE_S
        while not built.front.idle and monotonic() < end:
            watch.turn()
    finally:
        if built.pipelines is not None:
            built.pipelines.close()
        built.applications.close()
        built.front.close()
        built.agent.stop()
        built.host.close()
        notifier.close()


def _end_pipelines(built: Built, watch: _Watch) -> None:
    """They are clients: what they asked is answered, and they ask no more."""
    if built.pipelines is None:
        return
    built.pipelines.stop()
    end = monotonic() + GRACE_S
    while not built.pipelines.idle and monotonic() < end:
        watch.turn()


class _Watch:
    """The loop, and what is looked at every so often beside it."""

    def __init__(self, built: Built, notifier: Notifier) -> None:
        self._built = built
        self._notifier = notifier
        self._looked_at = self._told_at = monotonic()
        self._first_told = False

    def turn(self) -> None:
        """Handle what is ready, and look around when it is time."""
        built = self._built
        built.loop.turn(WATCH_S)
        now = monotonic()
        if now - self._looked_at < WATCH_S:
            return
        self._looked_at = now
        built.front.watch(now)
        built.host.reap()
        workers = built.front.workers()
        if not self._first_told:
            firsts = [worker.board.first_ns for worker in workers if worker.board.first_ns]
            if firsts:
                self._first_told = True
                built.agent.answered((monotonic_ns() - min(firsts)) / 1e9)
        alive = now - built.agent.stepped_at < STEP_S_MAX and all(
            worker.proven(now) for worker in workers
        )
        interval_s = self._notifier.interval_s
        if interval_s is not None and now - self._told_at >= interval_s and alive:
            self._told_at = now
            self._notifier.send(notify.WATCHDOG)
