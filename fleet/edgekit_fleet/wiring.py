"""Constructs the manager from its adapters and runs it: one process, four threads, one HTTP server.

A SIGKILL at any point is safe: nothing that matters is in memory only. SIGTERM and SIGINT end it in
order: HTTP first, then rollouts, ingest and publisher, the broker connection last.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from edgekit import __version__
from edgekit.contracts import topics
from edgekit.contracts.errors import EdgekitError, UnavailableError, UsageError, translate_os_errors
from edgekit_fleet import views
from edgekit_fleet.api import create_app
from edgekit_fleet.artifacts import ArtifactStore
from edgekit_fleet.config import ManagerConfig
from edgekit_fleet.ingest import Ingest
from edgekit_fleet.join_api import Joining
from edgekit_fleet.link import MqttLink
from edgekit_fleet.objects import Objects
from edgekit_fleet.queries import Queries
from edgekit_fleet.rollout import controller
from edgekit_fleet.store import twins
from edgekit_fleet.store.engine import Database
from edgekit_fleet.store.rollouts import SqlRolloutStore
from edgekit_fleet.twin import Publisher

log = logging.getLogger(__name__)

LOCK_FILE = "manager.lock"
STALL_S = 15.0  # a controller that has not ticked for this long is reported as stuck


@contextmanager
def hold_lock(data_dir: Path) -> Iterator[None]:
    """Be the only manager on ``data_dir``; the kernel frees the lock when the process dies.

    Raises:
        UnavailableError: another manager runs on it.
    """
    path = data_dir / LOCK_FILE
    with translate_os_errors("open", path):
        data_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UnavailableError(
                f"{data_dir}: another manager (pid {pid}) is running on this folder",
                hint="stop it, or choose another --data-dir",
            ) from exc
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def bind(listen: str, port: int) -> socket.socket:
    """A listening socket, before anything else is started.

    Raises:
        UnavailableError: the port is in use.
        UsageError: the address is not ours.
    """
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listen, port))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"port {port} on {listen} is in use", hint="choose another with --port"
            ) from exc
        raise UsageError(f"cannot listen on {listen}:{port}: {exc.strerror or exc}") from exc
    return sock


class Manager:
    """The running parts, and what they say about their health."""

    def __init__(self, config: ManagerConfig, database: Database, port: int) -> None:
        self.config = config
        self.database = database
        self.started = time.time()
        self._device_config = config.device_config(port)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ticked = time.monotonic()
        self._tick_problem = ""
        self.queries = Queries(database, tenant=config.tenant, report_s=config.report_s)
        self.publisher = Publisher(database, tenant=config.tenant, clock=time.time)
        self.ingest = Ingest(
            database,
            tenant=config.tenant,
            config=self._device_config,
            on_owed=self.publisher.wake,
            batch_s_max=config.batch_s_max,
            batch_messages_max=config.batch_messages_max,
        )
        self.link = MqttLink(
            config.broker,
            client_id=f"edgekit-manager-{config.tenant}",
            subscriptions=[topics.subscription(config.tenant, leaf) for leaf in topics.FROM_DEVICE],
            on_message=self.ingest.receive,
            on_ready=self.publisher.broker_returned,
        )
        self.rollouts = SqlRolloutStore(
            database,
            tenant=config.tenant,
            config=self._device_config,
            changed=self.publisher.wake,
        )

    def start(self) -> None:
        """Start every part."""
        with self.database.write() as connection:
            changed = twins.refresh_config(connection, self._device_config, time.time())
        if changed:
            log.info("settings changed: %d desired documents re-issued", changed)
        self._spawn("ingest", lambda: self.ingest.run(self.link))
        self._spawn("publisher", lambda: self.publisher.run(self.link))
        self._spawn("controller", self._control)
        self.link.start()

    def stop(self) -> None:
        """Stop every part, in order; what was not acknowledged stays with the broker."""
        self._stopping.set()
        self.ingest.stop()
        self.publisher.stop()
        for thread in self._threads:
            thread.join(timeout=10.0)
        self.link.stop()

    def _spawn(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _control(self) -> None:
        while not self._stopping.wait(self.config.tick_s):
            self._tick()

    def _tick(self) -> None:
        try:
            controller.tick(self.rollouts, time.time)
        except EdgekitError as exc:
            if not self._tick_problem:
                log.error("controller: %s", exc.message)  # noqa: TRY400 - expected, one line
            self._tick_problem = exc.message
        except Exception as exc:
            # A bug in one step must not end all rollouts: it is shown in /health and retried.
            log.exception("controller step failed")
            self._tick_problem = f"{type(exc).__name__}: {exc}"
        else:
            self._tick_problem = ""
            self._ticked = time.monotonic()

    def health(self) -> views.HealthView:
        """How every part is doing."""
        devices, online = self.queries.fleet_counts(time.time())
        alive = {thread.name for thread in self._threads if thread.is_alive()}
        stalled = time.monotonic() - self._ticked > STALL_S
        problems = {
            "ingest": self.ingest.problem,
            "publisher": self.publisher.problem,
            "controller": self._tick_problem or ("stuck" if stalled else ""),
        }
        parts = {
            name: views.Part(
                ok=name in alive and not problem,
                detail=problem if name in alive else "not running",
            )
            for name, problem in problems.items()
        }
        detail = self.link.problem or f"connected to {self.config.broker}"
        broker = views.Part(ok=self.link.connected, detail=detail)
        good = broker.ok and all(part.ok for part in parts.values())
        return views.HealthView(
            status="ok" if good else "degraded",
            version=__version__,
            tenant=self.config.tenant,
            pid=os.getpid(),
            started=self.started,
            broker=broker,
            devices=devices,
            online=online,
            **parts,
        )


def run(config: ManagerConfig, announce: Callable[[str], None]) -> None:
    """Run a manager until it is told to stop.

    Args:
        config: checked settings.
        announce: called with the base URL when the manager answers.

    Raises:
        UsageError, BadInputError, UnavailableError, ResourceError: it could not start.
    """
    config.check()
    with ExitStack() as stack:
        stack.enter_context(hold_lock(config.data_dir))
        sock = stack.enter_context(bind(config.listen, config.port))
        database = Database.open(config.data_dir)
        stack.callback(database.close)
        store = ArtifactStore.open(config.data_dir / "artifacts", _objects(config))
        port = sock.getsockname()[1]
        manager = Manager(config, database, port)

        @asynccontextmanager
        async def lifespan(_app: FastAPI):  # type: ignore[no-untyped-def]  # noqa: ANN202
            host = f"[{config.listen}]" if ":" in config.listen else config.listen
            announce(f"http://{host}:{port}")
            yield

        app = create_app(
            database=database,
            store=store,
            queries=manager.queries,
            health=manager.health,
            joining=Joining(
                database,
                store,
                tenant=config.tenant,
                broker=config.device_broker or config.broker,
                artifacts_url=config.artifacts_url,
                clock=time.time,
            ),
        )
        app.router.lifespan_context = lifespan
        stack.callback(manager.stop)
        manager.start()
        if config.require_broker and not manager.link.wait_connected(config.broker_wait_s):
            raise UnavailableError(
                manager.link.problem or f"broker {config.broker} is not reachable",
                hint="start one with `edgekit broker run`, or name it with --broker",
            )
        settings = uvicorn.Config(
            app, access_log=False, log_config=None, timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(settings)
        # The server catches the signals while it runs and raises them again when it has ended.
        # Python's default for SIGTERM would end the process there, before the parts are stopped.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _leave_unless(server.should_exit))
        server.run(sockets=[sock])


def _objects(config: ManagerConfig) -> Objects | None:
    """The bucket artifacts lie in; None for the data folder.

    Raises:
        UsageError, BadInputError, UnavailableError: it cannot be used.
    """
    if config.artifacts is None:
        return None
    try:
        from edgekit_fleet.s3 import S3Objects  # noqa: PLC0415 - an extra of its own
    except ModuleNotFoundError as exc:
        raise UsageError(
            "artifacts in a bucket need obstore, which is not installed",
            hint="pip install 'edgekit-ml[s3]'",
        ) from exc
    return S3Objects.open(config.artifacts, config.s3_endpoint)


def _leave_unless(already_leaving: bool) -> None:
    if not already_leaving:
        raise SystemExit(0)
