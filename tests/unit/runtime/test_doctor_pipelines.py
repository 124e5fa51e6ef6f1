"""What the doctor says about pipelines that cannot work, and about one that can."""

from __future__ import annotations

import socket

import pytest
from agentkit import layouts

from edgekit_runtime import config as configuration
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.doctor import pipelines
from edgekit_runtime.doctor.check import Status
from edgekit_runtime.doctor.held import Held
from edgekit_runtime.pipelines import parts
from edgekit_runtime.pipelines.counts import Counts
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.twocopy import TwoCopy


@pytest.fixture
def examine(tmp_path):
    state = layouts.LayoutWriter(tmp_path / "state").root
    record = DeploymentRecord(models={"meter": ModelRecord()})
    TwoCopy(PosixDisk(), state, "record", DeploymentRecord).save(record)

    def run(**table):
        document = {
            "device": {"id": "d-1", "state_dir": str(state)},
            "pipeline": [
                {
                    "name": "door",
                    "model": "meter",
                    "source": {"kind": "http", "port": 8480},
                    "sinks": [{"kind": "file", "path": str(tmp_path / "new" / "out.jsonl")}],
                }
                | table
            ],
        }
        config = configuration.check(document, "test")
        return config, list(pipelines.pipelines(config, Held.read(config)))

    return run


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_pipeline_that_can_work_is_ok(examine):
    _, (found,) = examine()
    assert (found.status, found.detail) == (
        Status.OK, "door: never started, its model, source and sinks are there",
    )  # fmt: skip


def test_unknown_model_and_missing_folder_device_and_password(examine, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "needs", lambda _spec: ("", ""))  # OpenCV is another test's
    _, (found,) = examine(model="other")
    assert found.status is Status.WARN
    assert "deployed here: meter" in found.mend
    for source in (
        {"kind": "folder", "path": str(tmp_path / "absent")},
        {"kind": "camera", "device": str(tmp_path / "absent.avi")},
        {"kind": "camera", "device": 99},
    ):
        _, (found,) = examine(source=source)
        assert (found.status, "not" in found.detail) == (Status.FAIL, True)
    sinks = [
        {"kind": "mqtt", "topic": "t", "port": _closed_port(), "username": "u",
         "password_file": str(tmp_path / "absent")},
        {"kind": "webhook", "url": f"http://127.0.0.1:{_closed_port()}/x"},
        {"kind": "file", "path": str(tmp_path / "state" / "record.0" / "out")},
    ]  # fmt: skip
    (tmp_path / "state" / "record.0").touch()
    _, found = examine(sinks=sinks)
    assert [each.status for each in found] == [
        Status.WARN, Status.FAIL, Status.WARN, Status.FAIL,
    ]  # fmt: skip
    assert all(each.mend for each in found)


def test_a_library_that_is_not_installed(examine, monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "needs", lambda _spec: ("cv2_absent", "camera"))
    _, (found,) = examine()
    assert (found.status, found.mend) == (Status.FAIL, "pip install 'edgekit-ml[camera]'")


def test_much_that_was_lost_is_said(examine):
    config, _ = examine()
    page = Counts(PosixDisk(), config.device.state_dir, config.pipeline[0])
    page.add("received", 100)
    page.add("inferred", 90)
    for _ in range(10):
        page.refuse("decode")
    page.sink(0, "delivered", 80)
    page.sink(0, "failed", 10)
    page.close()
    found = [each for each in examine()[1] if each.status is Status.WARN]
    assert ["10 of 100 items" in found[0].detail, "10 answers" in found[1].detail] == [True, True]
