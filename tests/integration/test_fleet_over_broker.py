"""A real manager and a real broker, killed while devices send: every count stays exact."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentkit.ports import free_port
from fleetkit import messages as m
from fleetkit.device import WireDevice, settle
from fleetkit.processes import EDGEKIT, Broker, Manager, edgekit, require_engine, running, wait_for

from edgekit.contracts import codec, digest, oci, topics
from edgekit.contracts.messages import VariantRef
from edgekit.contracts.release import Release

pytestmark = pytest.mark.integration


class Site:
    """Broker, manager and the devices a test adds."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.broker = Broker(engine, folder)
        self.manager = Manager(self.broker.port, folder)
        self.devices: list[WireDevice] = []
        self.folder = folder

    def device(self, name: str, **options: object) -> WireDevice:
        device = WireDevice(name, self.broker.port, **options)
        self.devices.append(device)
        return device

    def close(self) -> None:
        for device in self.devices:
            device.close()

    def publish(self, name: str, *expected: str) -> None:
        """Push a bundle written by hand and announce the release, by the command."""
        root = self.folder / name
        blobs = root / "blobs" / "sha256"
        blobs.mkdir(parents=True)

        def put(data: bytes) -> oci.Descriptor:
            blob = digest.of_bytes(data)
            (blobs / digest.hex_of(blob)).write_bytes(data)
            return oci.Descriptor(media_type="x/y", digest=blob, size=len(data))

        layer = put(b"model " + name.encode() * 1000)
        manifest = put(codec.encode(oci.Manifest(config=put(b"{}"), layers=(layer,))))
        (root / oci.LAYOUT_FILE).write_text('{"imageLayoutVersion": "1.0.0"}')
        variant = VariantRef(digest=manifest.digest, repository="meter", size=layer.size)
        release = Release(name=name, model="meter", version="1", variants={"x86-64-v3": variant})
        path = self.folder / f"{name}.release.json"
        path.write_bytes(codec.encode({"release": release, "layouts": [name]}))
        for words in expected or ("published",):
            done = edgekit("release", "publish", str(path), "--manager", self.manager.url)
            assert done.returncode == 0, done.stderr
            assert words in done.stdout

    def spec(self, name: str, release: str, **changes: object) -> Path:
        wave = {"name": "all", "percent": 100.0, "soak_s": 0.5, "looks": 1, "timeout_s": 60.0}
        path = self.folder / f"{name}.json"
        spec = {"name": name, "release": release, "waves": [wave | changes]}
        path.write_text(json.dumps(spec))
        return path

    def start(self, spec: Path) -> None:
        done = edgekit("fleet", "rollout", "start", str(spec), "--manager", self.manager.url)
        assert done.returncode == 0, done.stderr

    def status(self, name: str) -> subprocess.CompletedProcess[str]:
        return edgekit(
            *("fleet", "rollout", "status", name, "--watch", "--manager", self.manager.url)
        )


@pytest.fixture(params=["iotcore", "mosquitto"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    require_engine(request.param)
    site = Site(request.param, tmp_path)
    with running(site.broker, site.manager):
        wait_for(site.manager.connected, "connection to the broker")
        try:
            yield site
        finally:
            site.close()


def test_duplicates_disorder_and_garbage_leave_the_count_exact(site: Site) -> None:
    device = site.device("d1")
    numbers = list(range(200)) * 2
    random.Random(1).shuffle(numbers)
    wait_for(lambda: site.manager.get("/devices"), "joining")
    for index, seq in enumerate(numbers):
        device.raw(topics.TELEMETRY_BACKFILL, m.counting_frame(seq, 3))
        if index % 20 == 0:
            device.raw(topics.TELEMETRY_LIVE, b"garbage %d" % index)
            device.raw(topics.REPORTED, b"{]")
    # Repeats of what was counted before arrive after the last new frame: wait for every one.
    kinds = ("frames", "frames_duplicate", "frames_damaged", "messages_malformed")
    wait_for(
        lambda: sum(site.manager.get("/inferences")[kind] for kind in kinds) >= 440, "every message"
    )
    found = site.manager.get("/inferences")
    assert found["frames"] == 200
    assert found["messages_malformed"] == 20
    assert found["totals"]["n"] == 600
    assert found["frames_duplicate"] == 200
    assert found["frames_damaged"] == 20
    assert site.manager.get("/health")["status"] == "ok"
    assert site.manager.end() == 0  # SIGTERM ends it in order
    site.manager.start()
    assert site.manager.counted() == 600


def test_killing_the_manager_loses_and_doubles_nothing(site: Site) -> None:
    """SIGKILL three times, each while frames are un-acked."""
    devices = [site.device(f"d{i}") for i in range(3)]
    sent = 0
    for part in range(3):
        for device in devices:
            sent += device.count(first=part * 150, frames=150, n=part + 1)
        before = site.manager.counted()
        wait_for(lambda before=before: site.manager.counted() > before, "some of it")
        assert any(device.frames for device in devices), "nothing was un-acked at the kill"
        site.manager.kill()
        site.manager.start()
    for device in devices:
        device.drained()
    assert site.manager.counted() == sent
    counted = site.manager.get("/inferences")["devices"]
    assert {name: row["n"] for name, row in counted.items()} == {f"d{i}": 900 for i in range(3)}


def test_killing_the_broker_loses_nothing_and_desired_comes_back(site: Site) -> None:
    """A broker that forgot everything is given every desired document again."""
    device = site.device("d1")
    wait_for(lambda: device.desired, "the first document")
    sent = device.count(first=0, frames=100)
    site.broker.kill()
    sent += device.count(first=100, frames=100)
    wait_for(lambda: not site.manager.connected(), "noticing")
    assert site.manager.get("/health")["status"] == "degraded"
    site.broker.start()
    device.drained()
    assert site.manager.counted() == sent
    newcomer = site.device("d1x", obey=False)
    wait_for(lambda: newcomer.desired_count, "its document")
    late = WireDevice("d1", site.broker.port)  # a restarted device reads what is retained
    device.close()
    site.devices.append(late)
    wait_for(lambda: late.desired, "the retained document")
    assert late.desired == device.desired
    late._gen, seen = 0, late.desired_count  # as after its storage was replaced
    settle(2.1)  # the manager sends a device its document at most every two seconds
    late.report()
    wait_for(lambda: late.desired_count > seen, "the document again")


def test_a_rollout_survives_a_killed_manager(site: Site) -> None:
    devices = [site.device(f"d{i}", obey=i != 3) for i in range(4)]
    wait_for(lambda: len(site.manager.get("/devices")) == 4, "joining")
    site.publish("v1", "published", "was published already")
    site.start(site.spec("r1", "v1"))
    obeying = devices[:3]
    wait_for(
        lambda: all(device.desired and device.desired.deployments for device in obeying),
        "the release on three devices",
    )
    assert site.manager.get("/rollouts/r1")["waves"][0]["phase"] == "installing"
    site.manager.kill()
    devices[3].obey = True
    site.manager.start()
    watched = site.status("r1")
    assert watched.returncode == 0, watched.stderr
    assert "r1: wave all: installing on 4 devices" in watched.stderr
    assert "r1: succeeded" in watched.stderr
    found = site.manager.get("/rollouts/r1")
    assert sorted(found["devices_exposed"]) == ["d0", "d1", "d2", "d3"]
    table = edgekit("fleet", "devices", "--manager", site.manager.url)
    assert table.stdout.count("CONFIRMED") == 4


def test_an_aborted_rollout_takes_devices_back(site: Site) -> None:
    device = site.device("d1")
    wait_for(lambda: site.manager.get("/devices"), "joining")
    site.publish("v1")
    site.publish("v2")
    site.start(site.spec("r1", "v1"))
    assert site.status("r1").returncode == 0
    site.start(site.spec("r2", "v2", soak_s=600.0))
    wait_for(lambda: device.desired.deployments["meter"].release == "v2", "the second release")
    before = device.desired.gen
    url = site.manager.url
    aborted = edgekit("fleet", "rollout", "abort", "r2", "--reason", "smoke", "--manager", url)
    assert aborted.returncode == 0, aborted.stderr
    watched = site.status("r2")
    assert watched.returncode == 4
    assert "smoke" in watched.stderr
    assert device.desired.deployments["meter"].release == "v1"
    assert device.desired.gen > before
    again = edgekit("fleet", "rollout", "abort", "r2", "--manager", url)
    assert again.returncode == 3
    assert "ended already" in again.stderr


def test_the_doctor_finds_a_tuned_broker_and_a_manager_well(site: Site, tmp_path: Path) -> None:
    where = ("--broker", f"127.0.0.1:{site.broker.port}", "--manager", site.manager.url)
    found = edgekit("doctor", *where, "--data-dir", str(tmp_path), "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    checks = {check["name"]: check["status"] for check in json.loads(found.stdout)}
    for name in ("broker round trip", "broker payload", "broker retained", "broker burst"):
        assert checks[name] == "ok"
    assert checks["manager"] == "ok"


# -- without a broker ------------------------------------------------------------------------------


def test_a_manager_without_a_broker_waits_and_says_so(tmp_path: Path) -> None:
    broker = Broker("iotcore", tmp_path)
    manager = Manager(broker.port, tmp_path)
    with running(manager):
        health = manager.get("/health")
        assert health["status"] == "degraded"
        assert str(broker.port) in health["broker"]["detail"] or health["broker"]["detail"]
        with running(broker):
            wait_for(manager.connected, "connection")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("fleet", "devices"), 5, "not reachable"),
        (("release", "list"), 5, "not reachable"),
        (("fleet", "rollout", "list"), 5, "not reachable"),
        (("fleet", "rollout", "start", "absent.toml"), 3, "absent.toml"),
        (("release", "publish", "absent"), 3, "absent"),
        (("release", "create", "Bad Name", "--from", "x"), 3, "Bad Name"),
        (("fleet", "up", "--broker", "x:y"), 2, "--broker"),
        (("fleet", "up", "--listen", "0.0.0.0"), 2, "no authentication"),
        (("doctor", "--broker", "127.0.0.1:1"), 5, "checks failed"),
    ],
)
def test_commands_fail_with_one_line_and_a_code(
    arguments: tuple[str, ...], code: int, said: str
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = edgekit(*arguments, env={"EDGEKIT_MANAGER": url})
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


def test_a_required_broker_that_is_absent_ends_the_manager(tmp_path: Path) -> None:
    command = [*EDGEKIT, "fleet", "up", "--require-broker", "--port", "0"]
    command += ["--data-dir", str(tmp_path / "m"), "--broker", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert "not reachable" in done.stderr
