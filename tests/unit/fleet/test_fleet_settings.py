"""Manager settings, broker configuration, release files: what is refused, and how."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cli import release_file, rollout
from edgekit.contracts import codec, digest, oci
from edgekit.contracts.bundle import (
    CONFIG_MEDIA_TYPE,
    FILE_MEDIA_TYPE,
    BundleFile,
    BundleManifest,
)
from edgekit.contracts.errors import BadInputError, UnavailableError, UsageError
from edgekit_fleet import broker
from edgekit_fleet.broker import BrokerConfig, Engine
from edgekit_fleet.config import HostPort, ManagerConfig, parse_host_port
from edgekit_fleet.wiring import bind, hold_lock

LOCAL = HostPort("127.0.0.1", 1883)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("broker", HostPort("broker", 1883)),
        ("broker:99", HostPort("broker", 99)),
        ("[::1]:99", HostPort("::1", 99)),
        ("::1", HostPort("::1", 1883)),
    ],
)
def test_host_port(text: str, expected: HostPort) -> None:
    assert parse_host_port(text, port_default=1883, what="--broker") == expected


@pytest.mark.parametrize("text", ["", ":99", "broker:", "broker:x", "broker:70000", "broker:0"])
def test_host_port_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--broker"):
        parse_host_port(text, port_default=1883, what="--broker")


def test_the_manager_serves_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no authentication"):
        ManagerConfig(data_dir=tmp_path, broker=LOCAL, listen="0.0.0.0").check()
    ManagerConfig(data_dir=tmp_path, broker=LOCAL, listen="0.0.0.0", insecure_bind=True).check()
    ManagerConfig(data_dir=tmp_path, broker=LOCAL, listen="::1").check()
    for change in ({"window_s": 0.0}, {"report_s": float("nan")}, {"port": -1}):
        with pytest.raises(UsageError):
            ManagerConfig(data_dir=tmp_path, broker=LOCAL, **change).check()


def test_devices_are_told_where_the_artifacts_are(tmp_path: Path) -> None:
    config = ManagerConfig(data_dir=tmp_path, broker=LOCAL)
    assert config.device_config(99).artifacts_url == "http://127.0.0.1:99"
    other = ManagerConfig(data_dir=tmp_path, broker=LOCAL, artifacts_url="https://x/")
    assert other.device_config(99).artifacts_url == "https://x"


def test_a_second_manager_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from edgekit_fleet.wiring import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])): pass"
    )
    with hold_lock(tmp_path):
        command = [sys.executable, "-c", code, str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another manager" in second.stderr
    with hold_lock(tmp_path):
        pass


def test_ports_in_use_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"port {port}"):
            bind("127.0.0.1", port)
        with pytest.raises(UnavailableError, match=f"port {port}"):
            broker.check(BrokerConfig(data_dir=tmp_path, port=port))


def test_addresses_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with pytest.raises(UsageError, match="lets anyone in"):
        broker.check(BrokerConfig(data_dir=tmp_path, listen="0.0.0.0"))


def test_broker_limits_are_generated(tmp_path: Path) -> None:
    config = BrokerConfig(data_dir=tmp_path, port=18831)
    mosquitto = broker.write_config(config, Engine.MOSQUITTO).read_text()
    for line in (
        "listener 18831 127.0.0.1",
        "max_inflight_messages 1000",
        "max_queued_messages 200000",
        "set_tcp_nodelay true",
        "autosave_interval 30",
    ):
        assert line in mosquitto.splitlines()
    iotcore = broker.write_config(config, Engine.IOTCORE).read_text()
    assert 'listen = "127.0.0.1:18831"' in iotcore
    assert f"max_payload_size = {broker.MESSAGE_BYTES_MAX}" in iotcore


def test_an_engine_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert broker.choose(Engine.AUTO) is Engine.IOTCORE
    with pytest.raises(UnavailableError, match="mosquitto"):
        broker.choose(Engine.MOSQUITTO)


# -- release files ---------------------------------------------------------------------------------


def put(root: Path, data: bytes) -> str:
    blob = digest.of_bytes(data)
    path = root / "blobs" / "sha256" / digest.hex_of(blob)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return blob


def build_out(root: Path, target: str = "x86-64-v3", version: str = "1", *, passed: bool = True):
    """A build's output folder, written by hand from the formats alone."""
    content = b"a model for " + target.encode()
    files = tuple(
        BundleFile(path=f"{role}.bin", role=role, sha256=put(root, content), size=len(content))
        for role in ("model", "contract")
    )
    config = codec.encode(
        BundleManifest(
            model="meter",
            version=version,
            target=target,
            precision="int8",
            engine="onnxruntime",
            engine_versions=">=1",
            files=files,
        )
    )
    raw = codec.encode(
        oci.Manifest(
            config=oci.Descriptor(
                media_type=CONFIG_MEDIA_TYPE, digest=put(root, config), size=len(config)
            ),
            layers=tuple(
                oci.Descriptor(media_type=FILE_MEDIA_TYPE, digest=f.sha256, size=f.size)
                for f in files
            ),
        )
    )
    bundle = put(root, raw)
    (root / oci.LAYOUT_FILE).write_text('{"imageLayoutVersion": "1.0.0"}')
    record = {
        "model": "meter",
        "version": version,
        "variants": [
            {
                "target": target,
                "repository": "meter",
                "digest": bundle if passed else None,
                "bundle_bytes": 1 if passed else None,
            }
        ],
    }
    (root / release_file.RECORD_FILE).write_bytes(codec.encode(record))
    return root, content


def test_a_release_gathers_the_variants_of_several_builds(tmp_path: Path) -> None:
    first, _ = build_out(tmp_path / "a")
    second, _ = build_out(tmp_path / "b", "rpi5")
    release, layouts = release_file.compose("v1", [first, second], "notes")
    assert sorted(release.variants) == ["rpi5", "x86-64-v3"]
    path = first / "v1.release.json"
    release_file.write(path, release, layouts)
    again, readers = release_file.read(path)
    assert again == release
    for variant in release.variants.values():
        release_file.holding(readers, variant.digest).manifest(variant.digest)
    with pytest.raises(BadInputError, match="not in"):
        release_file.holding(readers, "sha256:" + "0" * 64)


def test_a_release_is_refused_when_it_would_lie(tmp_path: Path) -> None:
    first, content = build_out(tmp_path / "a")
    failed, _ = build_out(tmp_path / "failed", "rpi4", passed=False)
    newer, _ = build_out(tmp_path / "newer", "rpi5", version="2")
    for folders, match in (
        ([first, newer], "one release|meter:2"),
        ([first, first], "in two folders"),
        ([failed], "no variant passed"),
        ([tmp_path / "absent"], "absent"),
    ):
        with pytest.raises(BadInputError, match=match):
            release_file.compose("v1", folders, "")
    first.joinpath("blobs", "sha256", digest.hex_of(digest.of_bytes(content))).write_bytes(b"bad")
    with pytest.raises(BadInputError, match="corrupted"):
        release_file.compose("v1", [first], "")


def test_a_release_is_found_by_name_or_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="no such file"):
        release_file.find("v1")
    folder, _ = build_out(tmp_path / "build-out")
    release, layouts = release_file.compose("v1", [folder], "")
    release_file.write(folder / "v1.release.json", release, layouts)
    assert release_file.find("v1").name == "v1.release.json"
    assert list(tmp_path.rglob("*.partial")) == []


def test_specs_are_toml_or_json(tmp_path: Path) -> None:
    toml, bad = tmp_path / "r.toml", tmp_path / "bad.toml"
    toml.write_text('name = "r1"\n[[waves]]\nname = "all"\npercent = 100.0\n')
    assert b'"waves"' in rollout.read_spec(toml)
    bad.write_text("name = ")
    with pytest.raises(BadInputError, match=r"bad\.toml"):
        rollout.read_spec(bad)
    with pytest.raises(BadInputError, match="absent"):
        rollout.read_spec(tmp_path / "absent.toml")
