"""Each check of the doctor, shown a device on which that thing is broken."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time

import msgspec
import pytest
from agentkit import layouts
from agentkit.engines import MemoryEngine

from edgekit.contracts.frames import Lane
from edgekit.contracts.messages import ClockQuality, DeviceEvent, Failure, SlotRef
from edgekit.contracts.states import SlotState
from edgekit_runtime import config as configuration
from edgekit_runtime import engines, machine_facts
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.containers.launcher import local_name
from edgekit_runtime.containers.slots import owner_of
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.doctor import containers, deployed, describe, device, service
from edgekit_runtime.doctor.check import Status
from edgekit_runtime.doctor.held import Held
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.spool import Spool, SpoolLimits
from edgekit_runtime.twocopy import TwoCopy


def _config(state, **device_keys):
    document = {"device": {"id": "d-1", "state_dir": str(state), **device_keys}}
    return configuration.check(document, "test")


def _ref(digest, target="x86-64-v3"):
    return SlotRef(digest=digest, version="1", target=target, release="v1", rollout="o", wave=0)


def _held(folder, /, **model):
    record = DeploymentRecord(models={"meter": ModelRecord(**model)})
    TwoCopy(PosixDisk(), folder, "record", DeploymentRecord).save(record)
    return Held.read(_config(folder))


@pytest.fixture
def state(tmp_path):
    return layouts.LayoutWriter(tmp_path / "state").root


def test_state_folder_missing_and_full(tmp_path, state):
    found = device.state_folder(tmp_path / "none")
    assert found.status is Status.FAIL
    assert "mkdir" in found.mend
    assert device.state_folder(state).status is Status.OK
    assert not (state / device.PROBE).exists()
    (state / f"{device.PROBE}.partial").mkdir()  # whoever runs this may write anywhere
    found = device.state_folder(state)
    assert found.status is Status.FAIL
    assert "chown" in found.mend


def test_clock_that_was_never_set_and_one_nobody_sets(monkeypatch):
    monkeypatch.setattr(device.time, "time", lambda: 1000.0)
    assert device.clock().status is Status.FAIL
    assert "1970-01-01" in device.clock().detail
    monkeypatch.undo()
    monkeypatch.setattr(device.SystemClock, "quality", lambda _: ClockQuality.UNKNOWN)
    assert device.clock().status is Status.WARN


def test_memory_short_and_stalled(tmp_path):
    info, pressure = tmp_path / "meminfo", tmp_path / "pressure"
    info.write_text("MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
    assert device.memory(info, pressure).status is Status.OK
    pressure.write_text("some avg10=45.00 avg60=1.0 avg300=0.0 total=1\n")
    assert "45 %" in device.memory(info, pressure).detail
    info.write_text("MemTotal: 1000000 kB\nMemAvailable: 20000 kB\n")
    assert device.memory(info, pressure).status is Status.FAIL


def test_heat_and_throttling(tmp_path):
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    cpu = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    zone.mkdir(parents=True)
    cpu.mkdir(parents=True)
    (zone / "temp").write_text("51000\n")
    (cpu / "scaling_max_freq").write_text("1500000\n")
    (cpu / "cpuinfo_max_freq").write_text("1500000\n")
    look = lambda: device.heat(tmp_path)  # noqa: E731
    assert look().status is Status.OK
    (cpu / "scaling_max_freq").write_text("600000\n")
    assert look().detail == "51 degrees C, throttled: cpu0 may not run at full speed"
    (cpu / "scaling_max_freq").write_text("1500000\n")
    (zone / "temp").write_text("91000\n")
    assert look().detail == "91 degrees C"
    assert look().status is Status.WARN


def test_socket_folder_that_cannot_be_written(state, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root
    found = device.mounts(_config(state))
    assert found.status is Status.FAIL
    assert "[serve] socket" in found.mend


def test_engine_missing_and_broken(state, monkeypatch):
    held = Held.read(_config(state))
    assert {check.status for check in deployed.engines(held)} == {Status.OK}
    monkeypatch.setattr(engines, "versions", lambda: {"no_such_engine": "1.0"})
    (found,) = deployed.engines(held)
    assert found.status is Status.FAIL
    assert "No module named" in found.detail
    monkeypatch.setattr(engines, "versions", dict)
    (found,) = deployed.engines(held)
    assert "no inference engine" in found.detail


def test_engine_of_a_version_the_bundle_was_not_built_for(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "state")
    digest = writer.add(engine_versions=">=99")
    held = _held(writer.root, state=SlotState.CONFIRMED, confirmed=True, active=_ref(digest))
    (bad,) = [check for check in deployed.engines(held) if check.status is Status.FAIL]
    assert "needs onnxruntime >=99" in bad.detail
    assert "build the bundle" in bad.mend


def test_bundle_for_another_processor(state):
    other = "rpi4" if machine_facts.arch() == "x86_64" else "x86-64-v3"
    held = _held(state, state=SlotState.CONFIRMED, active=_ref("sha256:" + "0" * 64, other))
    found = deployed.targets(_config(state), held)
    assert found.status is Status.FAIL
    assert other in found.detail


def test_quarantine_safe_and_damaged_blobs(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "state")
    digest = writer.add()
    failed = {"sha256:" + "1" * 64: Failure(reason="NaN rate 1.0", at=1.0)}
    held = _held(writer.root, state=SlotState.CONFIRMED, active=_ref(digest), failed=failed)
    quarantine, model = deployed.models(held)
    assert (quarantine.status, model.status) == (Status.WARN, Status.OK)
    assert "NaN rate" in quarantine.detail
    next(p for p in (writer.root / "blobs/sha256").iterdir() if p.stat().st_size > 300).write_bytes(
        b"?"
    )
    assert [c.status for c in deployed.models(held)] == [Status.WARN, Status.FAIL]
    held = _held(writer.root, state=SlotState.SAFE)
    assert "nothing can serve" in next(iter(deployed.models(held))).detail


def test_record_that_cannot_be_read(state):
    for copy in "ab":
        (state / f"record.{copy}").write_bytes(b"junk")
    (found, _) = deployed.models(Held.read(_config(state)))
    assert found.status is Status.FAIL
    assert "unreadable" in found.detail


def test_crash_loops_are_told_from_the_audit_records(state):
    spool = Spool.open(PosixDisk(), state / "spool", SystemClock())
    for _ in range(3):
        event = DeviceEvent(kind="worker_ended", detail="meter: SIGSEGV", at=time.time())
        spool.append(Lane.AUDIT, [event])
    found = deployed.endings(Held.read(_config(state)))
    assert found.status is Status.WARN
    assert "SIGSEGV" in found.detail


def test_spool_that_fills_and_drops(state):
    limits = SpoolLimits(bytes_max=4000, segment_bytes=1000)
    spool = Spool.open(PosixDisk(), state / "spool", SystemClock(), limits)
    event = DeviceEvent(kind="x", detail=os.urandom(100).hex(), at=1.0)
    while not spool.report().frames_evicted:
        full = spool.report().bytes_used > 3300
        spool.append(Lane.HEALTH, [event], sync=True)
        if full:
            assert deployed.spool(Held.read(_config(state)), 4000).status is Status.WARN
    found = deployed.spool(Held.read(_config(state)), 4000)
    assert "dropped so far" in found.detail


def test_broker_without_address_unreachable_and_no_broker(state):
    nowhere = configuration.check(
        {
            "device": {"id": "d", "state_dir": str(state)},
            "broker": {"host": "no-such-host.invalid"},
        },
        "test",
    )
    found = service.broker(nowhere)
    assert "has no address" in found.detail
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        document = {"device": {"id": "d", "state_dir": str(state)}, "broker": {"port": port}}
        found = service.broker(configuration.check(document, "test"))
        assert found.status is Status.FAIL
        assert str(port) in found.detail


@pytest.mark.parametrize(("code", "status"), [(404, Status.OK), (503, Status.FAIL)])
def test_artifact_server_that_answers(code, status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = service.artifacts(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert found.status is status
    assert str(code) in found.detail


def test_artifact_server_that_is_not_there():
    assert service.artifacts(None).status is Status.OK
    found = service.artifacts("http://no-such-host.invalid:1")
    assert "has no address" in found.detail
    found = service.artifacts("http://127.0.0.1:9")
    assert found.status is Status.FAIL


def test_no_agent_runs(state):
    found = service.endpoint(_config(state))
    assert "no agent runs" in found.detail
    assert "mend: start it" in describe(found)


def test_slots_that_are_images_are_asked_of_the_engine(tmp_path, monkeypatch):
    engine = MemoryEngine()
    folder = layouts.LayoutWriter(tmp_path / "state").root
    ref = msgspec.structs.replace(_ref("sha256:" + "b" * 64), image=engine.publish("1", "b"))
    held = _held(folder, state=SlotState.CONFIRMED, confirmed=True, active=ref)
    assert Status.FAIL not in {check.status for check in deployed.engines(held)}
    assert list(deployed.models(held)) == []  # its blobs are not on this disk
    (missing,) = containers.containers(_config(folder), held)
    assert "no engine is configured" in missing.detail
    document = {"device": {"id": "d-1", "state_dir": str(folder)}}
    config = configuration.check({**document, "containers": {"engine": "unix:///x"}}, "test")
    monkeypatch.setattr(containers.opened, "engine", lambda _url: engine)
    answers, gone = containers.containers(config, held)
    assert (answers.status, gone.status) == (Status.OK, Status.FAIL)
    engine.names[local_name(owner_of(config), ref.content)] = engine.registry[ref.content]
    assert {check.status for check in containers.containers(config, held)} == {Status.OK}
    engine.away = True
    (away,) = containers.containers(config, held)
    assert (away.status, away.name) == (Status.FAIL, "containers")
