"""A real Docker Engine of the tests' own, which can be killed and started again."""

from __future__ import annotations

import json
import shutil
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
        shutil.rmtree(folder, ignore_errors=True)
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

    def docker(self, *words: str) -> str:
        command = ["docker", "-H", self.url, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


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
