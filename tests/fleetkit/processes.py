"""Real brokers and managers as processes of their own, started by the commands users type."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from agentkit.ports import free_port

START_S_MAX = 30.0
EDGEKIT = (sys.executable, "-c", "from edgekit.cli.main import main; main()")


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = START_S_MAX) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


def edgekit(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*EDGEKIT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **(env or {})},
    )


def require_engine(engine: str) -> None:
    """In CI a missing broker is a failure; elsewhere the test says why it did not run."""
    if engine == "mosquitto" and shutil.which("mosquitto") is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not on PATH, and CI tells the story on both brokers")
        pytest.skip("mosquitto is not on PATH (apt-get install mosquitto)")


class Process:
    """A child that says one line when it is ready."""

    def __init__(self, command: list[str], ready: str, log: Path) -> None:
        self._command, self._ready, self.log = command, ready, log
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            mark = out.tell()
            self._child = subprocess.Popen(
                [*EDGEKIT, *self._command], stdout=out, stderr=subprocess.STDOUT
            )
        wait_for(lambda: self._said(mark), f"{self._ready!r} in {self.log}")

    def _said(self, mark: int) -> bool:
        assert self._child is not None
        text = self.log.read_bytes()[mark:].decode()
        assert self._child.poll() is None, text
        return self._ready in text

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit code."""
        assert self._child is not None
        self._child.send_signal(number)
        code = self._child.wait(20)
        self._child = None
        return code

    def close(self) -> None:
        if self._child is not None:
            self.kill()


class Broker(Process):
    def __init__(self, engine: str, folder: Path) -> None:
        self.port = free_port()
        command = ["broker", "run", "--engine", engine, "--port", str(self.port)]
        command += ["--data-dir", str(folder / "broker")]
        super().__init__(command, f"listening on 127.0.0.1:{self.port}", folder / "broker.log")


class Manager(Process):
    def __init__(self, broker_port: int, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.data_dir = folder / "manager"
        command = ["fleet", "up", "--data-dir", str(self.data_dir), "--port", str(port)]
        command += ["--broker", f"127.0.0.1:{broker_port}", "--report-s", "2", "--window-s", "1"]
        super().__init__(command, f"listening on {self.url}", folder / "manager.log")

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1{path}", timeout=10.0)
        answer.raise_for_status()
        return answer.json()

    def connected(self) -> bool:
        return bool(self.get("/health")["broker"]["ok"])

    def counted(self) -> int:
        return int(self.get("/inferences")["totals"]["n"])


@contextmanager
def running(*processes: Process) -> Iterator[None]:
    """Start in order; kill what is left in reverse."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in reversed(processes):
            process.close()
