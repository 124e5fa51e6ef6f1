"""The checks behind ``edgekit doctor``."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.limits import FRAME_BYTES_MAX

EXTRAS = {
    "build": ("numpy", "onnx", "onnxruntime", "httpx"),
    "runtime": ("numpy", "onnxruntime", "paho-mqtt"),
    "fleet": ("paho-mqtt", "sqlalchemy", "fastapi", "uvicorn", "httpx"),
}
FREE_BYTES_MIN = 1024**3
ROUND_TRIP_S_MAX = 5.0
BURST_MESSAGES = 3000  # stock mosquitto drops what exceeds 1000 queued


class Status(str, Enum):
    """Result of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding and, unless all is well, its mend."""

    name: str
    status: Status
    detail: str
    mend: str = ""


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status=Status.OK, detail=detail)


def _fail(name: str, detail: str, mend: str) -> Check:
    return Check(name=name, status=Status.FAIL, detail=detail, mend=mend)


def _warn(name: str, detail: str, mend: str) -> Check:
    return Check(name=name, status=Status.WARN, detail=detail, mend=mend)


def run_all(*, manager: str | None, broker: str, data_dir: Path) -> Iterator[Check]:
    """Every check, in the order things are needed."""
    yield check_python()
    yield from (check_extra(extra, packages) for extra, packages in EXTRAS.items())
    yield check_folder(data_dir)
    yield from check_broker(broker)
    yield check_manager(manager)


def check_python() -> Check:
    """Builder and manager need 3.11."""
    version = sys.version.split()[0]
    if sys.version_info >= (3, 11):
        return _ok("python", version)
    return _fail("python", f"{version} is older than 3.11", "the agent alone runs on 3.10")


def check_extra(extra: str, packages: tuple[str, ...]) -> Check:
    """Whether every package of an extra is installed, and which version."""
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    name = f"extra {extra}"
    if missing:
        mend = f"pip install 'edgekit-ml[{extra}]' if this machine needs it"
        return _warn(name, f"not installed: {', '.join(missing)}", mend)
    return _ok(name, ", ".join(f"{package} {version}" for package, version in versions.items()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_folder(folder: Path) -> Check:
    """Writable, with space left."""
    probe = folder / f".edgekit-doctor-{uuid.uuid4().hex}"
    try:
        descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.write(descriptor, b"x" * 4096)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as exc:
        return _fail(
            "data folder", f"{folder}: {exc.strerror or exc}", "create it, or choose another"
        )
    detail = f"{folder.absolute()} is writable, {free / 1024**3:.1f} GiB free"
    if free < FREE_BYTES_MIN:
        return _warn("data folder", detail, "free at least 1 GiB")
    return _ok("data folder", detail)


def check_manager(url: str | None) -> Check:
    """Whether the manager answers and all its parts are well."""
    try:
        from edgekit.cli.manager_client import ManagerClient
    except ModuleNotFoundError as exc:
        return _warn("manager", f"not checked: {exc.name} is not installed", "install [fleet]")
    try:
        with ManagerClient(url) as client:
            health = client.get("/health")
    except EdgekitError as exc:
        return _fail("manager", exc.message, exc.hint or "")
    parts = ("broker", "ingest", "publisher", "controller")
    bad = [f"{part}: {health[part]['detail']}" for part in parts if not health[part]["ok"]]
    if bad:
        return _fail("manager", f"{client.url} is degraded: {'; '.join(bad)}", "see its log")
    detail = f"{client.url} is well, {health['online']} of {health['devices']} devices online"
    return _ok("manager", detail)


def check_broker(address: str) -> Iterator[Check]:
    """Reachable, round trip, largest payload, retained messages, a burst without loss."""
    try:
        import paho.mqtt.client  # noqa: F401 - is it there?

        from edgekit_fleet.config import parse_host_port
    except ModuleNotFoundError as exc:
        yield _warn("broker", f"not checked: {exc.name} is not installed", "install [fleet]")
        return
    target = parse_host_port(address, port_default=1883, what="--broker")
    try:
        probe = BrokerProbe(target.host, target.port)
    except (OSError, TimeoutError) as exc:
        mend = "start one with `edgekit broker run`, or name it with --broker"
        yield _fail("broker", f"{target} is not reachable: {exc}", mend)
        return
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("broker round trip", probe.round_trip),
        ("broker payload", probe.large_payload),
        ("broker retained", probe.retained),
        ("broker burst", probe.burst),
    )
    try:
        for name, step in steps:
            check = _try(name, str(target), step)
            yield check
            if check.status is Status.FAIL:
                return  # what follows builds on it
    finally:
        probe.close()


def _try(name: str, target: str, step: Callable[[], str]) -> Check:
    try:
        return _ok(name, f"{target}: {step()}")
    except (OSError, TimeoutError) as exc:
        mend = "run it with `edgekit broker run`, or take over its generated configuration"
        return _fail(name, f"{target}: {exc}", mend)


class BrokerProbe:
    """A publisher and a subscriber on topics of their own; real MQTT, QoS 1."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._topic = f"ek/doctor/{uuid.uuid4().hex}"
        self._got: queue.Queue[tuple[bytes, bool]] = queue.Queue()
        self._clients: list[Any] = []
        try:
            self._publisher = self._connect()
            self._subscriber = self._connect()
            self._subscribe(self._subscriber, self._topic)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Any:
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        answered: queue.Queue[str] = queue.Queue()
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"doctor-{uuid.uuid4().hex[:12]}"
        )
        client.connect_timeout = ROUND_TRIP_S_MAX
        client.max_inflight_messages_set(BURST_MESSAGES)
        client.on_connect = lambda _c, _d, _f, reason, _p: answered.put(
            str(reason) if reason.is_failure else ""
        )
        client.on_message = lambda _c, _d, message: self._got.put(
            (bytes(message.payload), message.retain)
        )
        client.connect(self._host, self._port, keepalive=30)
        client.loop_start()
        self._clients.append(client)
        try:
            refused = answered.get(timeout=ROUND_TRIP_S_MAX)
        except queue.Empty:
            raise TimeoutError("accepted the connection but does not speak MQTT") from None
        if refused:
            raise ConnectionRefusedError(f"refused the connection: {refused}")
        return client

    def _subscribe(self, client: Any, topic: str) -> None:
        granted: queue.Queue[bool] = queue.Queue()
        client.on_subscribe = lambda _c, _d, _m, reasons, _p: granted.put(
            not any(reason.is_failure for reason in reasons)
        )
        client.subscribe(topic, qos=1)
        try:
            if not granted.get(timeout=ROUND_TRIP_S_MAX):
                raise ConnectionRefusedError("refused a subscription")
        except queue.Empty:
            raise TimeoutError("did not answer a subscription") from None

    def _expect(self, what: str, timeout_s: float = ROUND_TRIP_S_MAX) -> tuple[bytes, bool]:
        try:
            return self._got.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"{what} did not arrive within {timeout_s:.0f} s") from None

    def _publish(self, payload: bytes, *, retain: bool = False) -> None:
        self._publisher.publish(self._topic, payload, qos=1, retain=retain)

    def round_trip(self) -> str:
        """A small message there and back."""
        began = time.perf_counter()
        self._publish(b"hello")
        self._expect("a message")
        return f"{1000 * (time.perf_counter() - began):.1f} ms"

    def large_payload(self) -> str:
        """The largest frame a device may send."""
        payload = os.urandom(FRAME_BYTES_MAX)
        self._publish(payload)
        found, _ = self._expect(f"a message of {FRAME_BYTES_MAX} bytes")
        if found != payload:
            raise OSError("a large message arrived altered")
        return f"{FRAME_BYTES_MAX} bytes pass"

    def retained(self) -> str:
        """A retained message reaches a later subscriber; it is removed afterwards."""
        self._publish(b"kept", retain=True)
        self._expect("a message")
        late = self._connect()
        try:
            self._subscribe(late, self._topic)
            payload, was_retained = self._expect("a retained message")
            if payload != b"kept" or not was_retained:
                raise OSError("a retained message arrived altered")
        finally:
            late.unsubscribe(self._topic)
            self._publish(b"", retain=True)
            self._expect("a message")
        return "kept for later subscribers"

    def burst(self) -> str:
        """More messages at once than stock brokers queue for one subscriber; none may be lost."""
        time.sleep(0.2)  # the late subscriber may still have been sent the removal above
        while not self._got.empty():
            self._got.get_nowait()
        for number in range(BURST_MESSAGES):
            self._publish(b"%d" % number)
        seen: set[bytes] = set()
        while len(seen) < BURST_MESSAGES:
            try:
                payload, _ = self._expect("a message")
            except TimeoutError:
                lost = BURST_MESSAGES - len(seen)
                raise OSError(f"lost {lost} of {BURST_MESSAGES} acknowledged messages") from None
            seen.add(payload)
        return f"{BURST_MESSAGES} messages at once, none lost"

    def close(self) -> None:
        """Disconnect."""
        for client in self._clients:
            client.disconnect()
            client.loop_stop()
