"""Workers in containers: the same worker on the same kind of socket as a process has.

The container sees its image, read-only, and one folder with the socket to connect to: no network,
no capabilities, a user without rights. It ends when its agent hangs up or dies, like every worker.
What an agent that was killed left behind is found by label and removed.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import BadInputError, EdgekitError, translate_os_errors
from edgekit.contracts.image import (
    BUNDLE_FOLDER,
    WORKER_COMMAND,
    WORKER_LABEL,
    WORKER_PROTOCOL,
)
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.engine.ports import ContainerEngine, ContainerSpec, EngineAwayError, Exit, ImageFacts
from edgekit_runtime import supervision
from edgekit_runtime.errors import UnsuitableError, WorkerEndedError
from edgekit_runtime.stderr import FATAL, LINE_BYTES_MAX, LINES_MAX
from edgekit_runtime.supervision import Ending, EndKind

AGENT_LABEL = "edgekit.agent"
NAMES = "edgekit-slot"
INSIDE = "/run/edgekit"  # the folder with the socket, as the container sees it
CONNECT_S_MAX = 120.0  # a small board unpacks and imports for a while
GRACE_S = 5.0  # between hanging up and killing
LOOK_S = 0.2  # between looks whether it ended instead of connecting
AWAY_S = 1.0  # between attempts to ask an engine that is away
RESTART_S_MAX = 120.0  # an engine that comes back kills what still runs: it takes no longer
USER = 65532  # the image's: "nonroot"
_KILLED = 128 + signal.SIGKILL
_CREDENTIALS = struct.Struct("3i")  # ucred of unix(7)
log = logging.getLogger(__name__)


def local_name(owner: str, digest: str) -> str:
    """What the agent ``owner`` calls the image ``digest``."""
    return f"{NAMES}/{owner}:{digests.hex_of(digest)}"


def check_protocol(image: ImageFacts | None, what: str) -> ImageFacts:
    """Return when agent and worker understand each other: they may be of different releases.

    Raises:
        UnsuitableError: they do not.
        BadInputError: the image is gone.
    """
    if image is None:
        raise BadInputError(f"{what}: is no longer in the container engine")
    if image.labels.get(WORKER_LABEL) != WORKER_PROTOCOL:
        raise UnsuitableError(
            f"{what}: its worker speaks {image.labels.get(WORKER_LABEL, 'an unknown protocol')}, "
            f"this agent {WORKER_PROTOCOL}",
            hint="build the image with the edgekit release that the agent is of",
        )
    return image


class ContainerLauncher:
    """`edgekit_runtime.launch.Launcher` over a container engine. Thread-safe."""

    root = BUNDLE_FOLDER

    def __init__(self, engine: ContainerEngine, folder: Path, owner: str) -> None:
        self._engine, self._folder, self._owner = engine, folder, owner
        self._lock = threading.Lock()
        self._live: dict[str, str] = {}  # token -> container; empty while it is being created
        self.untidy = True  # until looked

    def start(self, model: str, ref: SlotRef, policy: Policy) -> ContainerWorker:
        """See `Launcher.start`."""
        name = local_name(self._owner, ref.content)
        check_protocol(self._engine.image(name), f"image {digests.short(ref.content)}")
        token = secrets.token_hex(4)
        with self._lock:
            self._live[token] = ""
        spec = ContainerSpec(
            image=name,
            command=(WORKER_COMMAND, f"{INSIDE}/s"),
            name=f"edgekit-{self._owner}-{token}",
            labels={AGENT_LABEL: self._owner, "edgekit.model": model},
            user=_user(),
            mounts={str(self._folder / token): INSIDE},
            memory_bytes_max=policy.worker_bytes_max,
        )
        try:
            with _listening(self._folder / token) as listener:
                container = self._engine.start(spec)
                with self._lock:
                    self._live[token] = container
                worker = ContainerWorker(self._engine, container, lambda: self._ended(token))
                worker.connect(listener, model)
        except BaseException:
            self.untidy = True
            if not self._live.get(token, "ended"):  # no container: nobody else clears up
                self._ended(token)
            raise
        return worker

    def _ended(self, token: str) -> None:
        """The container is gone, or could not be removed and is looked for later."""
        with self._lock:
            container = self._live.pop(token, "")
        shutil.rmtree(self._folder / token, ignore_errors=True)
        try:
            if container:
                self._engine.remove(container)
        except EdgekitError as exc:
            self.untidy = True
            log.warning("container %s stays for now: %s", container[:12], exc.message)

    def sweep(self) -> None:
        """Remove what is labelled as ours and not running for this process.

        Raises:
            EdgekitError: the engine does not answer, or refuses; what is left stays for next time.
        """
        self.untidy = False
        try:
            # Looked at before what lives is: a worker started meanwhile is then known to live.
            containers = self._engine.containers(AGENT_LABEL, self._owner)
            folders = list(self._folder.iterdir()) if self._folder.is_dir() else []
            with self._lock:
                tokens, known = set(self._live), set(self._live.values())
            if "" in known:
                self.untidy = True  # one is just being created: not to be told from an old one
                return
            for container in containers:
                if container not in known:
                    log.info("removing container %s of an earlier agent", container[:12])
                    self._engine.remove(container)
        except EdgekitError:
            self.untidy = True
            raise
        for folder in folders:
            if folder.name not in tokens:
                shutil.rmtree(folder, ignore_errors=True)


class ContainerWorker:
    """`edgekit_runtime.launch.WorkerHandle` of a container. A thread waits for its end."""

    def __init__(self, engine: ContainerEngine, container: str, on_end: Callable[[], None]) -> None:
        self.channel = socket.socket(socket.AF_UNIX)
        self.pid = 0
        self._engine, self._container, self._on_end = engine, container, on_end
        self._ending: Ending | None = None
        self._last_words, self._tag = "", f"container {container[:12]}"
        self._known, self._done = threading.Event(), threading.Event()  # how it ended; it is gone
        self._killed = False
        self._away_at = -RESTART_S_MAX  # when the engine was last found away
        self._hung_up_at: float | None = None
        threading.Thread(target=self._watch, name=f"wait-{container[:12]}", daemon=True).start()

    def connect(self, listener: socket.socket, model: str) -> None:
        """Take its connection.

        Raises:
            WorkerEndedError, UnsuitableError, EngineAwayError: it ended instead, or came too late.
        """
        listener.settimeout(LOOK_S)
        self.channel.close()
        end = monotonic() + CONNECT_S_MAX
        while True:
            try:
                self.channel, _ = listener.accept()
                break
            except TimeoutError:
                pass
            if self._known.is_set():
                raise self._did_not_start(model)
            if monotonic() > end:
                self.kill()
                text = f"its container did not connect within {CONNECT_S_MAX:g} s"
                raise WorkerEndedError(f"{model}: {text}", Ending(EndKind.STUCK, text))
        self.channel.settimeout(None)
        raw = self.channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid = _CREDENTIALS.unpack(raw)[0]

    def _did_not_start(self, model: str) -> EdgekitError:
        ending = self._ending
        assert ending is not None
        if ending.kind is EndKind.OUTSIDE:
            return EngineAwayError(f"{model}: {ending.reason}")
        if "exec format error" in self._last_words:
            return UnsuitableError(
                f"{model}: this machine cannot run the image's architecture",
                hint="build an image for a target of this machine",
            )
        told = f": {self._last_words}" if self._last_words else ""
        return WorkerEndedError(f"{model}: before it connected, {ending.reason}{told}", ending)

    def say_as(self, tag: str) -> None:
        """See `WorkerHandle.say_as`."""
        self._tag = tag

    def ending(self) -> Ending | None:
        """See `WorkerHandle.ending`."""
        return self._ending

    def kill(self) -> None:
        """See `WorkerHandle.kill`."""
        if not self._killed and not self._known.is_set():
            self._killed = True
            threading.Thread(target=self._kill, name="kill", daemon=True).start()

    @property
    def leaving(self) -> bool:
        """See `WorkerHandle.leaving`."""
        return self._hung_up_at is not None

    def hang_up(self) -> None:
        """See `WorkerHandle.hang_up`."""
        self._hung_up_at = monotonic()
        self.channel.close()

    def reap(self, *, now: float) -> bool:
        """See `WorkerHandle.reap`."""
        if self._hung_up_at is not None and now - self._hung_up_at > GRACE_S:
            self.kill()
        return self._done.is_set()

    def wait(self, timeout_s: float = GRACE_S) -> Ending:
        """See `WorkerHandle.wait`; an engine that is away is not waited for."""
        if not self._known.wait(timeout_s):
            self.kill()
        if self._ending is not None:
            return self._ending
        if self._engine_restarts():
            return Ending(EndKind.OUTSIDE, "the container engine went away")
        return Ending(EndKind.CRASH, "its container ended, and the engine did not say how")

    def _kill(self) -> None:
        try:
            self._engine.kill(self._container)
        except EdgekitError as exc:
            log.warning("cannot kill container %s: %s", self._container[:12], exc.message)
            self._killed = False  # asked again

    def _watch(self) -> None:
        while (ending := self._how()) is None:
            threading.Event().wait(AWAY_S)
        self._ending = ending
        self._known.set()
        self._on_end()
        self._done.set()

    def _how(self) -> Ending | None:
        """Wait for its end and learn how; None: the engine is away, and it still runs."""
        code = None
        try:
            ended = self._engine.wait(self._container)
            code = ended.code
            self._last_words = self._logged()
            if code == _KILLED and not (self._killed or ended.out_of_memory):
                # An engine that ends kills what it runs, and so does one that comes back.
                self._engine.architecture()
                if self._engine_restarts():
                    return Ending(EndKind.OUTSIDE, "the container engine was started again")
        except EngineAwayError as exc:
            self._away_at = monotonic()
            if code is None and self._runs():
                return None
            return Ending(EndKind.OUTSIDE, f"its container ended: {exc.message}")
        except EdgekitError as exc:
            return Ending(EndKind.CRASH, f"its container is gone: {exc.message}")
        return msgspec.structs.replace(
            describe(ended), words="" if self._killed else self._last_words
        )

    def _engine_restarts(self) -> bool:
        return monotonic() - self._away_at < RESTART_S_MAX

    def _logged(self) -> str:
        """The line that names its crash, else the last one it wrote to stderr; all go to the log.

        The engine keeps what it writes until then.
        """
        lines = self._engine.logs(self._container)[1].decode(errors="replace").strip().splitlines()
        for line in lines[-LINES_MAX:]:
            log.warning("%s: %s", self._tag, line[:LINE_BYTES_MAX])
        fatal = (line for line in lines if line.startswith(FATAL))
        return next(fatal, lines[-1] if lines else "")[:300]

    def _runs(self) -> bool:
        """Whether its main process lives, as far as this process can see."""
        if not self.pid:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def describe(ended: Exit) -> Ending:
    """What a container's exit says; codes above 128 are signals."""
    if ended.out_of_memory:
        return Ending(EndKind.MEMORY, "its container ran out of memory")
    return supervision.describe_exit(128 - ended.code if ended.code > 128 else ended.code)


def _user() -> str:
    """Root gives the socket to the image's user; anybody else lets the container run as himself."""
    own = os.geteuid()
    return f"{USER}:{USER}" if own == 0 else f"{own}:{os.getegid()}"


class _listening:  # noqa: N801 - used as a function
    """A listening socket called ``s`` in the new folder, which only the container's user enters."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> socket.socket:
        try:
            with translate_os_errors("make a socket in", self._folder):
                self._make()
        except EdgekitError:
            self._socket.close()
            raise
        return self._socket

    def _make(self) -> None:
        self._folder.mkdir(parents=True, mode=0o700)
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:  # by descriptor: the path may be longer than a socket's address allows
            self._socket.bind(f"/proc/self/fd/{handle}/s")
        finally:
            os.close(handle)
        if os.geteuid() == 0:
            for path in (self._folder, self._folder / "s"):
                os.chown(path, USER, USER)
        self._socket.listen(1)

    def __exit__(self, *_: object) -> None:
        self._socket.close()
