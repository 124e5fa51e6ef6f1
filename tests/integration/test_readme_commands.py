"""The README's commands, run as they stand there, with the documents' own examples as files.

Only ports, the state folder and waiting times differ: an hour of soak is long.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from agentkit.ports import free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def blocks(document, language):
    text = (ROOT / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def wait_for_port(port):
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nothing listens on {port}")


class Place:
    """An empty folder with a model, its data and the documents' example files."""

    def __init__(self, folder):
        from edgekit.cli.demo import data, train

        self.folder = folder
        self.broker, self.manager, self.device_port = (free_port() for _ in range(3))
        self.daemons = []
        meters = data.load(data.cache_folder())
        train.train(meters.train, folder / "model.onnx", kernels=(16, 16), seed=1)
        everything = [meters.calibration, meters.tuning, meters.evaluation, meters.golden]
        np.savez(
            folder / "data.npz",
            power=np.concatenate([part.x for part in everything]),
            labels=np.concatenate([part.y for part in everything]),
        )
        agent = blocks("runtime/README.md", "toml")[0]
        (folder / "agent.toml").write_text(self.here_and_now(agent))
        spec = json.loads(blocks("docs/rollouts.md", "json")[0])
        spec |= {"name": "meter-v1", "release": "meter-v1"}
        spec["policy"] = {"confirm_inferences_min": 5, "confirm_s_min": 0.5}
        # One device: a wave that compares with a control cohort has nobody to compare with.
        spec["waves"] = [{**spec["waves"][1], "soak_s": 1, "looks": 1, "gates": []}]
        (folder / "rollout.json").write_text(json.dumps(spec))

    def here_and_now(self, text):
        replaced = {
            "1883": str(self.broker),
            "8471": str(self.device_port),
            "broker.local": "127.0.0.1",
            "/var/lib/edgekit": "state",
        }
        for told, here in replaced.items():
            text = text.replace(told, here)
        return text

    @property
    def environment(self):
        return os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "EDGEKIT_REGISTRY": str(self.folder / "registry"),
            "EDGEKIT_MANAGER": f"http://127.0.0.1:{self.manager}",
        }

    def run(self, line):
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, line):
        with (self.folder / f"daemon-{len(self.daemons)}.log").open("wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    ["/bin/sh", "-c", f"exec {line}"], cwd=self.folder, env=self.environment,
                    stdout=log, stderr=log,
                )
            )  # fmt: skip

    def operate(self, line):
        """One line of the operator's block; True when it was the one that watches a rollout."""
        if "broker run" in line:
            self.start(line)
        elif "edgekit-agent run" in line:
            self.start(line)
            self.wait_for_device()
        elif "fleet up" in line:
            self.start(f"{line} --port {self.manager}")
            wait_for_port(self.manager)
        elif "--watch" in line:
            watcher = subprocess.Popen(line, shell=True, cwd=self.folder, env=self.environment)
            ask(self, lambda: watcher.poll() is not None)
            assert watcher.returncode == 0, self.logs()
            return True
        else:
            self.run(line)
        return False

    def wait_for_device(self):
        """A person takes longer to type the next line than an agent to join."""
        for _ in range(100):
            if "meter-07" in self.run("edgekit fleet devices --json").stdout:
                return
            time.sleep(0.1)
        pytest.fail(self.logs())

    def logs(self):
        return "\n".join(path.read_text()[-800:] for path in sorted(self.folder.glob("*.log")))

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@pytest.fixture
def place(tmp_path_factory):
    # Unix sockets allow 107 bytes: pytest's own folder names are too long for the agent's.
    here = Place(tmp_path_factory.mktemp("r"))
    yield here
    here.stop()


def lines(block):
    return [line.partition("#")[0].strip() for line in block.splitlines() if line.strip()]


def ask(place, stop_when):
    """Ask the agent for inferences until ``stop_when``."""
    body = {
        "inputs": [
            {"name": "power", "shape": [1, 24], "datatype": "FP32", "data": [0.1] * 24},
        ]
    }
    deadline = time.monotonic() + 90
    while not stop_when():
        assert time.monotonic() < deadline, place.logs()
        subprocess.run(
            ["curl", "-s", "-o", os.devnull, "-d", json.dumps(body),
             f"http://127.0.0.1:{place.device_port}/v2/models/meter/infer"],
            cwd=place.folder, timeout=10, check=False,
        )  # fmt: skip
        time.sleep(0.05)


def test_every_command_of_the_readme_runs(place):
    demo, install, shortest, usual, fleet = blocks("README.md", "sh")
    assert lines(demo) == ["make demo"]  # CI runs it for real
    extras = re.findall(r"'\.\[([\w,]+)\]'", install)
    assert extras == ["build", "runtime", "fleet", "docker", "images,camera"]

    for line in lines(shortest):
        place.run(line)
    assert (place.folder / "build-out" / "index.json").exists()

    for line in lines(usual):
        # This machine proves what it can; the README's second target is x86.
        place.run(line.replace("model add meter", "model add meter --version 7"))

    watched = [place.operate(place.here_and_now(line)) for line in lines(fleet)]
    assert watched.count(True) == 1
    shown = place.run("edgekit fleet devices --json").stdout
    assert '"meter-v1"' in shown
