"""Images in a real Docker Engine, by command and by stock tools, and all that can go wrong."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from enginekit.engine import EDGEKIT
from packagekit.servers import serving

from edgekit.contracts import digest
from edgekit.contracts.oci import LayoutReader
from edgekit.engine import docker_engine
from edgekit.engine.docker_engine import DockerEngine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
AMD64, ARM64 = "image@waves-1-x86-64-v3", "image@waves-1-rpi5"


@pytest.fixture
def run(engine, work):
    def command(*words, code=0, **environment):
        done = subprocess.run(
            [*EDGEKIT, *map(str, words)],
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DOCKER_HOST": engine.url, **environment},
            timeout=200,
        )
        assert done.returncode == code, (done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    before = _everything(engine)
    yield command
    assert _everything(engine) == before  # nothing is left behind, whatever happened


def _everything(engine):
    images = engine.docker("images", "-aq", "--no-trunc").split()
    names = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}@{{.Digest}}").split()
    return set(images), set(names), set(engine.docker("ps", "-aq").split())


def _emulated(engine, run):
    done = run("image", "selftest", ARM64, "--cpu", "cortex-a76", "--json")
    return json.loads(done.stdout)


def test_both_platforms_reproduce_their_golden_outputs(run, engine):
    native = json.loads(run("image", "selftest", AMD64, "--json").stdout)
    assert (native["passed"], native["target"], native["machine"]) == (True, "x86-64-v3", "x86_64")
    emulated = _emulated(engine, run)
    assert (emulated["passed"], emulated["target"]) == (True, "rpi5")
    assert emulated["machine"] == "aarch64"
    assert emulated["golden"]["n"] == 32


def test_load_and_push_through_the_engine_and_pull_by_digest(run, engine, tmp_path):
    run("image", "load", AMD64, "--name", "waves:loaded")
    with serving(tmp_path / "store") as served:
        done = run("image", "push", "waves:loaded", f"{served.host}/waves:1", "--json")
        found = json.loads(done.stdout)["digest"]
        assert "Pushed" in done.stderr
        run("pull", f"{served.host}/waves@{found}", "--out", tmp_path / "copy")
        engine.docker("rmi", "waves:loaded")
        name = f"{served.host}/waves"
        assert DockerEngine(engine.url).pull(name, found, lambda _: None) > 0
        engine.docker("rmi", f"{name}@{found}")


def test_stock_tools_read_what_we_write_and_serve(run, engine, work, tmp_path):
    with serving(tmp_path / "store") as served:
        run("push", "image@waves-1", f"{served.host}/waves:1")
        for platform, machine in (("linux/amd64", "amd64"), ("linux/arm64", "arm64")):
            engine.docker("pull", "--quiet", "--platform", platform, f"{served.host}/waves:1")
            shown = json.loads(engine.docker("image", "inspect", f"{served.host}/waves:1"))
            assert shown[0]["Architecture"] == machine
            engine.docker("rmi", f"{served.host}/waves:1")
        source = f"docker://{served.host}/waves:1"
        raw = _skopeo("inspect", "--raw", "--tls-verify=false", source)
        assert len(json.loads(raw)["manifests"]) == 2
        _skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path}/copied:1")
    shown = json.loads(_skopeo("inspect", f"oci:{work}/image:waves-1-rpi5"))
    assert (shown["Architecture"], len(shown["Layers"])) == ("arm64", 4)
    copied = LayoutReader(tmp_path / "copied")
    assert copied.resolve("1") == LayoutReader(work / "image").resolve("waves-1")


def _skopeo(*words):
    command = ["skopeo", "--insecure-policy", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_registries_that_refuse_or_fail(run, engine, tmp_path, monkeypatch):
    run("image", "load", AMD64, "--name", "waves:refused")
    with serving(tmp_path / "store") as served:
        to = f"{served.host}/waves:1"
        served.login = "basic"
        done = run("image", "push", "waves:refused", to, code=3)
        assert "the registry does not allow it" in done.stderr
        assert "hint: docker login" in done.stderr
        served.login = ""
        served.statuses = [503] * 50
        done = run("image", "push", "waves:refused", to, code=5)
        assert "the registry is failing" in done.stderr
        served.statuses = []
        with pytest.raises(Exception, match="no such image"):
            DockerEngine(engine.url).pull(
                f"{served.host}/waves", "sha256:" + "0" * 64, lambda _: None
            )
        monkeypatch.setattr(docker_engine, "PULL_S_MAX", 1.0)
        served.stall_s = 5.0
        with pytest.raises(Exception, match="nothing moved for 1 s"):
            DockerEngine(engine.url).pull(
                f"{served.host}/waves", "sha256:" + "0" * 64, lambda _: None
            )
        served.stall_s = 0.0
    assert "not reachable" in run("image", "push", "waves:refused", to, code=5).stderr
    engine.docker("rmi", "waves:refused")


def test_an_engine_that_is_not_there(run, tmp_path):
    done = run("image", "selftest", AMD64, code=5, DOCKER_HOST=f"unix://{tmp_path}/none")
    assert "no container engine answers at" in done.stderr
    assert "hint: is it running?" in done.stderr


def test_an_image_that_is_none_of_ours_or_not_there(run, engine):
    assert "the engine holds no image" in run("image", "selftest", "none:1", code=3).stderr
    assert "not an image of one platform" in run("image", "load", "image@waves-1", code=3).stderr
    assert "not an image of one" in run("image", "load", "bundles@waves-1-rpi5", code=3).stderr


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_layer_is_never_loaded(run, work, tmp_path, damage):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", work / "image", copy], check=True)
    layout = LayoutReader(copy)
    layer = layout.manifest(layout.resolve("waves-1-x86-64-v3")).layers[-1]
    path = layout.blob_path(layer.digest)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] if damage == "cut" else raw[:-1] + bytes([raw[-1] ^ 1]))
    done = run("image", "load", f"{copy}@waves-1-x86-64-v3", code=3)
    assert "does not match its digest" in done.stderr


def test_an_archive_that_lies_is_refused_by_the_engine_in_our_words(run, engine, work):
    layout = LayoutReader(work / "image")
    manifest = layout.manifest(layout.resolve("waves-1-x86-64-v3"))
    name = digest.hex_of(manifest.config.digest)

    def archive():
        yield f"{name} is no tar".encode() * 100

    with pytest.raises(Exception, match="altered or cut off"):
        DockerEngine(engine.url).load(archive())


def test_without_an_emulator_a_foreign_image_says_what_to_install(run):
    """Tested last: it switches the emulator off for a moment, and on again."""
    switch = Path("/proc/sys/fs/binfmt_misc/edgekit-aarch64")
    switch.write_text("0")
    try:
        done = run("image", "selftest", ARM64, code=3)
    finally:
        switch.write_text("1")
    assert "cannot run its architecture" in done.stderr
    assert "qemu-user-static" in done.stderr
