"""A real broker, a small fake manager on paho, an artifact server, and agent processes."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from agentkit.ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.contracts import codec, frames, ids, topics
from edgekit.contracts.composition import Link
from edgekit.contracts.messages import (
    Ack,
    Deployment,
    Desired,
    DeviceConfig,
    ImageRef,
    Policy,
    Presence,
    Reported,
    VariantRef,
    Window,
)
from edgekit.stats.intervals import IntervalSet

QUICK = Policy(confirm_inferences_min=5, confirm_s_min=0.3, error_min_n=5, download_attempts_max=3)


def wait_for(condition, *, timeout_s: float = 60.0, what: str = "condition"):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what}")


class Broker:
    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Broker:
        command = [sys.executable, "-m", "iotcore", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._listens, what="broker")
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Artifacts:
    """The read side of the OCI distribution API over layout folders; counts what it serves."""

    def __init__(self, root: Path) -> None:
        requests = self.requests = []
        self.cut_after: int | None = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                path = root / "blobs" / "sha256" / self.path.rpartition(":")[2]
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                body = data[start:]
                if outer.cut_after is not None and len(body) > outer.cut_after:
                    body = body[: outer.cut_after]
                    self.close_connection = True
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Manager:
    """Publishes desired states, counts every frame once, acknowledges."""

    def __init__(self, port: int, artifacts_url: str) -> None:
        self.acking = True
        self.windows: list[Window] = []
        self.records: list[Any] = []
        self.reported: dict[str, Reported] = {}
        self.presence: dict[str, Presence] = {}
        self.received = 0
        self.runtime: dict[str, Any] | None = None  # of the next desired state
        self._config = DeviceConfig(artifacts_url=artifacts_url, window_s=0.3, report_s=5.0)
        self._seen: dict[tuple[Any, ...], IntervalSet] = {}
        self._gens: dict[str, int] = {}
        self._desired: dict[str, bytes] = {}
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="manager")
        self._client.on_connect = self._connected
        self._client.on_message = self._message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client, _data, _flags, _reason, _properties) -> None:
        for leaf in topics.FROM_DEVICE:
            client.subscribe(topics.subscription("default", leaf), qos=1)
        for topic, payload in self._desired.items():
            client.publish(topic, payload, qos=1, retain=True)

    def _message(self, client, _data, message) -> None:
        address, leaf = topics.parse(message.topic)
        if leaf == topics.REPORTED:
            self.reported[address.device] = codec.decode(Reported, message.payload, what=leaf)
        elif leaf == topics.PRESENCE:
            self.presence[address.device] = codec.decode(Presence, message.payload, what=leaf)
        elif leaf == topics.TELEMETRY_LIVE:
            self.received += 1
            if self.acking:
                self._commit(client, address, message.payload)

    def _commit(self, client, address, payload: bytes) -> None:
        header, records, _ = frames.decode(payload)
        key = (address.device, header.epoch, header.boot, header.lane)
        seen = self._seen.setdefault(key, IntervalSet())
        if header.seq not in seen:
            seen.add(header.seq)
            self.records += records
            self.windows += [record for record in records if isinstance(record, Window)]
        ack = Ack(
            epoch=header.epoch,
            boot=header.boot,
            lane=header.lane,
            intervals=seen.pairs,
            manager_time=time.time(),
        )
        client.publish(address.topic(topics.ACK), codec.encode(ack), qos=1)

    @property
    def counted(self) -> int:
        return sum(window.n for window in self.windows)

    def deploy(
        self,
        device: str,
        digest: str,
        *,
        release: str,
        policy: Policy = QUICK,
        target: str = "x86-64-v3",
        token: str = "",
        image: ImageRef | None = None,
        compose: tuple[Link, ...] = (),
        more: dict[str, Deployment] | None = None,
    ) -> int:
        variant = VariantRef(digest=digest, repository="meter", size=1, image=image)
        meter = Deployment(
            rollout=f"{release}-rollout",
            wave=0,
            release=release,
            variants={target: variant},
            policy=policy,
            retry_token=token,
            compose=compose,
        )
        return self._publish(device, {"meter": meter, **(more or {})})

    def deploy_all(
        self,
        device: str,
        bundles: dict[str, str],
        release: str,
        *,
        policy: Policy = QUICK,
        policies: dict[str, Policy] | None = None,
        group: tuple[str, ...] = (),
    ) -> int:
        """Several models; ``policies`` replaces ``policy`` by name."""
        deployments = {
            name: Deployment(
                rollout=f"{release}-rollout",
                wave=0,
                release=release,
                variants={"x86-64-v3": VariantRef(digest=digest, repository=name, size=1)},
                policy=(policies or {}).get(name, policy),
                group=group,
            )
            for name, digest in bundles.items()
        }
        return self._publish(device, deployments)

    def _publish(self, device: str, deployments: dict[str, Deployment]) -> int:
        gen = self._gens[device] = self._gens.get(device, 0) + 1
        desired = Desired(
            gen=gen, runtime=self.runtime, config=self._config, deployments=deployments
        )
        topic = topics.Address("default", ids.shard_of(device), device).topic(topics.DESIRED)
        self._desired[topic] = codec.seal(desired)
        self._client.publish(topic, self._desired[topic], qos=1, retain=True)
        return gen

    def remove(self, device: str) -> int:
        """Nothing is desired any more; returns the generation that says so."""
        gen = self._gens[device] = self._gens.get(device, 0) + 1
        topic = topics.Address("default", ids.shard_of(device), device).topic(topics.DESIRED)
        self._desired[topic] = codec.seal(Desired(gen=gen, config=self._config))
        self._client.publish(topic, self._desired[topic], qos=1, retain=True)
        return gen

    def model(self, device: str):
        report = self.reported.get(device)
        return report.models.get("meter") if report else None

    def wait_state(
        self, device: str, state: str, *, release: str | None = None, timeout_s: float = 60.0
    ):
        def reached():
            model = self.model(device)
            if model is None or model.state.value != state:
                return None
            fits = release is None or (model.active and model.active.release == release)
            return model if fits else None

        try:
            return wait_for(reached, timeout_s=timeout_s, what=f"{device} {state} {release}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it is {self.model(device)}") from exc


class AgentProcess:
    """One real agent in its own process."""

    def __init__(self, folder: Path, device: str, broker_port: int, extra: str = "") -> None:
        self.device = device
        self.state = folder / device
        self.socket = folder / f"{device}.sock"
        self.config = folder / f"{device}.toml"
        self.config.write_text(
            f'[device]\nid = "{device}"\nstate_dir = "{self.state}"\n'
            f'targets = ["x86-64-v3"]\n[broker]\nport = {broker_port}\n'
            f'[serve]\nsocket = "{self.socket}"\n{extra}'
        )
        self.log = folder / f"{device}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> AgentProcess:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgekit_runtime", "run", "--config", self.config],
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: self._request("GET", "/v2/health/live")[0] == 200, what=self.device)
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(30)
        self.process = None
        return code

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """(0, None) when there is no answer."""
        with contextlib.closing(UnixConnection(self.socket)) as connection:
            try:
                connection.request(method, path, body)
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                return 0, None

    def get(self, path: str) -> tuple[int, Any]:
        return self._request("GET", path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._request("POST", path, raw)

    def infer(self, request_id: str | None, row=(0.1, 0.2, 0.3, 0.4)) -> tuple[int, Any]:
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": list(row)}
        body: dict[str, Any] = {"inputs": [tensor]}
        if request_id:
            body["id"] = request_id
        return self.post("/v2/models/meter/infer", body)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgekit_runtime", *arguments, "--config", self.config],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ},
            timeout=60,
        )

    def status(self) -> dict[str, Any]:
        done = self.cli("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class World:
    """Everything of one test; closes what it opened."""

    def __init__(self, folder: Path, layout_root: Path) -> None:
        self.folder = folder
        self.broker = Broker().start()
        self.artifacts = Artifacts(layout_root)
        self.manager = Manager(self.broker.port, self.artifacts.url)
        self.agents: list[AgentProcess] = []

    def agent(self, device: str = "dev-1", extra: str = "") -> AgentProcess:
        agent = AgentProcess(self.folder, device, self.broker.port, extra)
        self.agents.append(agent)
        return agent.start()

    def close(self) -> None:
        for agent in self.agents:
            agent.kill()
        self.manager.close()
        self.artifacts.close()
        self.broker.kill()
