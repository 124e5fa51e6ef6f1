"""Runs the inference application on its sockets until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, cast

import uvicorn

from edgekit.contracts.errors import EdgekitError, UnavailableError, translate_os_errors
from edgekit_runtime import http_protocol, notify
from edgekit_runtime.config import AgentConfig, ServeSection
from edgekit_runtime.http_protocol import BoundedProtocol
from edgekit_runtime.notify import Notifier
from edgekit_runtime.wiring import Built
from edgekit_runtime.worker_model import WorkerModel

BACKLOG = 128
KEEP_ALIVE_S = 75  # longer than the clients' own, so that they close and never lose a request
WATCH_S = 0.1  # between looks at workers and clients
STEP_S_MAX = 60.0  # of the control thread; its disk may be slow, but not for ever
GRACE_S = 10  # running requests get this long after a stop
LOOPBACK = "127.0.0.1"  # there is no authentication: never another address


class _Server(uvicorn.Server):
    """Signals belong to the agent, not to the HTTP server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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


async def serve(built: Built, section: ServeSection, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM, SIGINT or the end of the control thread."""
    config = uvicorn.Config(
        built.app,
        http=cast("Any", http_protocol.factory(section.connections_max)),
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    built.agent.on_end = lambda: loop.call_soon_threadsafe(stop)
    built.agent.start()
    watch = loop.create_task(_watch(built, server, section.client_s_max))
    try:
        await server.serve(sockets=sockets)
    finally:
        watch.cancel()
        await asyncio.to_thread(built.agent.stop)
        built.host.close()


async def _watch(built: Built, server: uvicorn.Server, client_s_max: float) -> None:
    """Looks after workers and clients, and tells the service manager that somebody does."""
    notifier = Notifier(os.environ)
    notifier.send(notify.READY)
    told_at = monotonic()
    try:
        while not server.should_exit:
            now = monotonic()
            workers = _workers(built)
            for worker in workers:
                worker.check()
            for connection in list(server.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.sweep(now, client_s_max)
            built.host.reap()
            alive = now - built.agent.stepped_at < STEP_S_MAX and all(
                worker.proven(now) for worker in workers
            )
            if notifier.interval_s is not None and now - told_at >= notifier.interval_s and alive:
                told_at = now
                notifier.send(notify.WATCHDOG)
            await asyncio.sleep(WATCH_S)
    finally:
        notifier.send(notify.STOPPING)
        notifier.close()


def _workers(built: Built) -> list[WorkerModel]:
    lives = [serving.live for serving in built.servings().values()]
    return [live.loaded for live in lives if live and isinstance(live.loaded, WorkerModel)]
