"""Runs the inference application on its sockets until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from edgekit.contracts.errors import EdgekitError, UnavailableError, translate_os_errors
from edgekit_runtime.agent import Agent
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.serve import InferenceApp

BACKLOG = 128
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
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
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


async def serve(agent: Agent, app: InferenceApp, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM, SIGINT or the end of the control thread."""
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    agent.on_end = lambda: loop.call_soon_threadsafe(stop)
    agent.start()
    try:
        await server.serve(sockets=sockets)
    finally:
        app.close()
        await asyncio.to_thread(agent.stop)
