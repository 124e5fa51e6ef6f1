"""A real Docker Engine of the tests' own, which can be killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from agentkit.layouts import LayoutWriter
from agentkit.world import wait_for

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import ImageRef
from edgekit.contracts.oci import LayoutReader
from edgekit.engine.docker_engine import DockerEngine

EDGEKIT = (sys.executable, "-c", "from edgekit.cli.main import main; main()")


class Engine:
    """``dockerd`` and ``containerd`` with their state in one folder; needs root.

    Two processes, as service managers run them: containers outlive an engine that is killed, until
    the next one ends them.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("dockerd") is None:
            raise AssertionError("dockerd is not on PATH: apt-get install docker.io")
        _clear(folder)
        folder.mkdir(parents=True)
        self.folder, self.url = folder, f"unix://{folder}/docker.sock"
        self.api = DockerEngine(self.url)
        self._process: subprocess.Popen[bytes] | None = None
        self._below: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._below is None:
            command = ["containerd", "--root", f"{self.folder}/containerd"]
            command += ["--state", f"{self.folder}/state", "--address", f"{self.folder}/c.sock"]
            with (self.folder / "containerd.log").open("ab") as log:
                self._below = subprocess.Popen(command, stdout=log, stderr=log)
            wait_for((self.folder / "c.sock").exists, what="containerd")
        command = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"]
        command += ["--containerd", f"{self.folder}/c.sock"]
        command += ["--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"]
        command += ["-H", self.url, "--pidfile", f"{self.folder}/pid"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, timeout_s=90, what=f"engine; see {self.folder}/log")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            return bool(self.api.architecture())
        except EdgekitError:
            return False

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait(60)
            self._process = None
            (self.folder / "pid").unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        if self._below is not None:
            self._below.terminate()
            self._below.wait(60)
            self._below = None
        for shim in _shims(f"{self.folder}/c.sock"):  # of containers that an engine's kill orphaned
            os.kill(shim, signal.SIGKILL)
        _unmount(self.folder)

    def docker(self, *words: str) -> str:
        command = ["docker", "-H", self.url, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def _shims(address: str) -> list[int]:
    """Processes that containerd left beside containers; its socket is among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"containerd-shim" in words[0] and address.encode() in words:
                    found.append(int(entry.name))
    return found


def _unmount(folder: Path) -> None:
    """What an engine that was killed left mounted."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed([each for each in mounted if each.startswith(f"{folder}/")]):
        subprocess.run(["umount", "-l", place], check=True)


def _clear(folder: Path) -> None:
    """Remove what an earlier engine left."""
    _unmount(folder)
    if folder.exists():
        shutil.rmtree(folder)


def edgekit(folder: Path, *words: object) -> str:
    command = [*EDGEKIT, *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Images:
    """Images of tiny real bundles, on a real base, in a registry."""

    def __init__(self, work: Path, folder: Path, registry: str) -> None:
        self.work, self.folder, self.registry = work, folder, registry

    def make(self, seed: int, version: str, **bundle: object) -> tuple[str, ImageRef]:
        """A bundle's digest and the image of it that was pushed."""
        target = "x86-64-v3"
        place = self.folder / f"v{version}"
        digest = LayoutWriter(place).add(seed=seed, version=version, tag="b", **bundle)
        given = ["--wheels", self.work / "cache" / "wheels", "--cache", self.work / "cache"]
        root = ["--base-rootfs", self.work / "amd64.tar", "--out", f"image-{version}"]
        out = edgekit(self.folder, "image", "build", place, "-t", target, *root, *given, "--json")
        (made,) = json.loads(out)
        edgekit(
            self.folder,
            "push",
            f"image-{version}@{made['tag']}",
            f"{self.registry}/meter:{version}",
        )
        layout = LayoutReader(self.folder / f"image-{version}")
        assert layout.manifest(made["digest"])
        return digest, ImageRef(
            digest=made["digest"], repository="meter", size=made["compressed"],
            registry=self.registry,
        )  # fmt: skip
