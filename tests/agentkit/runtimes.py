"""Tiny runtimes: an ``agent.py`` of a few lines each, and a supervisor in its own process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
from agentkit.world import AgentProcess, wait_for

import edgekit_runtime.supervisor
from edgekit.contracts import codec, oci, runtime
from edgekit.contracts.device import bootstrap, joining
from edgekit.contracts.messages import VariantRef
from edgekit.contracts.runtime import RuntimeFile, RuntimeManifest, RuntimeTarget
from edgekit_runtime import engines
from edgekit_runtime.supervisor.book import Book
from edgekit_runtime.supervisor.rules import fresh

PROGRAM = Path(edgekit_runtime.supervisor.__file__).with_name("__main__.py")
_SAYS = """
import os, signal, socket, sys, time
pathname = os.environ["NOTIFY_SOCKET"]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text):
    notify.sendto(text.encode(), pathname)
def stop(*_):
    say("STOPPING=1")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
state = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
how = os.environ["EDGEKIT_SUPERVISOR"]
open(os.path.join(state, "ran"), "a").write(f"{NAME} {os.getpid()} {how}\\n")
"""
GOOD = """
say("READY=1"); say("STATUS=good"); say("EDGEKIT=reported")
while True:
    say("WATCHDOG=1"); time.sleep(0.05)
"""
DOES_NOT_START = "import no_such_engine"
NEVER_REPORTS = """
say("READY=1")
while True:
    say("WATCHDOG=1"); time.sleep(0.05)
"""
HANGS = """
say("READY=1"); say("EDGEKIT=reported")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
CRASHES = """
say("READY=1"); say("EDGEKIT=reported"); time.sleep(0.05)
os.kill(os.getpid(), signal.SIGSEGV)
"""


def switches(digest: str, **policy: object) -> str:
    """An agent that asks for another runtime as soon as it runs, once."""
    request = json.dumps({"id": f"to-{digest}", "digest": digest, "tries": 2, **policy})
    return f"""
asked = os.path.join(state, "asked-{digest[7:15]}")
if not os.path.exists(asked):
    say("READY=1"); say("EDGEKIT=reported")
    open(asked, "w")
    partial = os.path.join(state, "runtime.request.partial")
    with open(partial, "w") as file:
        file.write({request!r}); file.flush(); os.fsync(file.fileno())
    os.rename(partial, os.path.join(state, "runtime.request"))
    sys.exit(75)
{GOOD}"""


def lay_out(state: Path, name: str, body: str) -> str:
    """A runtime; its digest."""
    text = f"NAME = {name!r}\n{_SAYS}\n{body}"
    name = hashlib.sha256(text.encode()).hexdigest()
    folder = state / "runtimes" / name
    folder.mkdir(parents=True)
    (folder / "agent.py").write_text(text)
    return f"sha256:{name}"


def prove(state: Path, digest: str) -> str:
    """Make it the confirmed runtime of a device."""
    Book(str(state)).save({**fresh(digest), "confirmed": True})
    return digest


def publish(writer, version: str, files: dict[str, str], *, engine: str | None = None) -> str:
    """A runtime as an artifact: one wheel with ``files``. What it lacks it finds in the test's own
    environment, whose Python starts it; on a device there is nothing to find.
    """
    facts = joining.facts()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in {"marker.txt": version, **files}.items():
            archive.writestr(name, text)
    wheel = f"edgekit_ml-{version}-py3-none-any.whl"
    digest, size = writer.blob(stream.getvalue())
    config = RuntimeManifest(
        version=version,
        arch=facts["arch"],
        python=facts["python"],
        glibc=facts["glibc"],
        engines={"onnxruntime": engine or engines.versions()["onnxruntime"]},
        packages={},
        files=(RuntimeFile(path=wheel, sha256=digest, size=size),),
    )
    layer = oci.Descriptor(media_type=runtime.WHEEL_MEDIA_TYPE, digest=digest, size=size)
    digest, size = writer.blob(codec.encode(config))
    described = oci.Descriptor(media_type=runtime.CONFIG_MEDIA_TYPE, digest=digest, size=size)
    manifest = oci.Manifest(artifact_type=runtime.ARTIFACT_TYPE, config=described, layers=(layer,))
    return writer.blob(codec.encode(manifest))[0]


def desired(digest: str, release: str, **trial: object) -> dict[str, object]:
    """``desired.runtime`` for this machine."""
    facts = joining.facts()
    variant = VariantRef(digest=digest, repository="runtime", size=1)
    tag = runtime.tag_of(facts["arch"], facts["python"])
    target = RuntimeTarget(release=release, variants={tag: variant}, **trial)
    return msgspec.to_builtins(target)


class SupervisedAgent(AgentProcess):
    """A real agent under a real supervisor; begins with the runtime ``first``."""

    def install(self, layout: Path, first: str) -> None:
        def read(digest):
            yield (layout / "blobs/sha256" / digest[7:]).read_bytes()

        bootstrap.install(read, read, first, self.state / "runtimes", lambda _: None)

    def start(self) -> SupervisedAgent:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", PROGRAM, self.state, "run", "--config", self.config],
                stdout=log,
                stderr=log,
            )
        self.wait_live()
        return self

    def wait_live(self) -> None:
        wait_for(lambda: self.get("/v2/health/live")[0] == 200, timeout_s=60, what=self.log)


class SupervisorProcess:
    """A real one; what it passes on to its service manager can be read."""

    def __init__(self, state: Path, *prefix: str, watchdog_s: float = 60.0) -> None:
        self.state = state
        self._prefix = prefix
        self._watchdog_s = watchdog_s
        self._upstream = state.parent / f"{state.name}.up"
        self._listener: socket.socket | None = None
        self.told: list[bytes] = []
        self.log = state.parent / f"{state.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, arguments=("run",)) -> SupervisorProcess:
        self._upstream.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(self._upstream))
        self._listener.setblocking(False)
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._upstream),
            "WATCHDOG_USEC": str(int(self._watchdog_s * 1e6)),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, sys.executable, "-I", "-S", PROGRAM, self.state, *arguments],
                stdout=log,
                stderr=log,
                env=environ,
            )
        return self

    def heard(self, text: bytes) -> bool:
        """Whether the service manager was told ``text``."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.told += self._listener.recv(4096).split(b"\n")
        return text in self.told

    def record(self):
        return Book(str(self.state)).load()

    def ran(self, word: int = 0) -> list[str]:
        """Names of the runtimes that were started, in order; ``word`` 2: what each was told."""
        path = self.state / "ran"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[word] for line in lines]

    def agent_pid(self) -> int:
        return int((self.state / "ran").read_text().splitlines()[-1].split()[1])

    def wait(self, condition, what: str):
        def look():
            found = condition()
            assert found or self.process.poll() is None, self.log.read_text()
            return found

        return wait_for(look, timeout_s=60, what=f"{what}\n{self.log.read_text()}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.close()
        return code

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._listener is not None:
            self._listener.close()
        self.process = self._listener = None


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int) -> None:
    wait_for(lambda: not is_alive(pid), what=f"end of {pid}")
