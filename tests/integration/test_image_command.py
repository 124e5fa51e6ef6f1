"""Images from the command line: reproducible, multi-platform, refused in one line."""

import json
import shutil
import subprocess
import sys

import pytest
from agentkit.layouts import LayoutWriter
from packagekit import bases, roots

from edgekit.contracts.oci import Index, LayoutReader

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
EDGEKIT = (sys.executable, "-c", "from edgekit.cli.main import main; main()")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    layout = LayoutWriter(folder / "bundles")
    layout.add(target="rpi5", tag="a")
    layout.add(target="x86-64-v3", tag="b")
    for arch in ("arm64", "amd64"):
        roots.write(folder / f"{arch}.tar", roots.base(arch))
    return folder


def image(place, *words):
    command = [*EDGEKIT, "image", *map(str, words)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def build(place, out, *words, target="rpi5", root="arm64.tar"):
    given = ["--wheels", "wheels", "--cache", f"cache-{out}", "--out", out, "--json"]
    return image(place, "build", "bundles", "-t", target, "--base-rootfs", root, *given, *words)


@pytest.fixture(scope="module")
def built(place):
    done = build(place, "one", "-t", "x86-64-v3", "--base-rootfs", "amd64.tar")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_platforms_under_one_name(place, built):
    layout = LayoutReader(place / "one")
    index = layout.manifest_or_index(layout.resolve("meter-1"))
    assert isinstance(index, Index)
    assert {entry.platform.architecture for entry in index.manifests} == {"arm64", "amd64"}
    manifest = layout.manifest(layout.resolve("meter-1-rpi5"))
    for blob in (manifest.config, *manifest.layers):
        layout.verify_blob(blob)
    config = json.loads(layout.read_blob(manifest.config.digest, bytes_max=100_000))
    assert config["architecture"] == "arm64"
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Labels"]["edgekit.target"] == "rpi5"
    assert len(config["rootfs"]["diff_ids"]) == len(manifest.layers) == 4


def test_the_same_inputs_give_the_same_digests(place, built):
    shutil.copytree(place / "bundles", place / "elsewhere" / "bundles")
    done = build(place, "two")  # its own cache: every layer is made again
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == built[:1]


def test_a_new_model_ships_one_layer(place, built):
    other = LayoutWriter(place / "v2")
    other.add(target="rpi5", version="2", seed=2)
    given = ["--wheels", "wheels", "--cache", "cache-one", "--out", "three", "--json"]
    done = image(place, "build", "v2", "-t", "rpi5", "--base-rootfs", "arm64.tar", *given)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[0]["layers"]
    changed = {name for name, facts in found.items() if facts != built[0]["layers"][name]}
    assert changed == {"model"}


def test_an_image_on_a_base_from_a_layout_keeps_its_layers(place, built):
    bases.write(place / "base", index=True)
    given = ["--wheels", "wheels", "--cache", "cache-one", "--out", "four", "--json"]
    done = image(place, "build", "bundles", "-t", "rpi5", "--base", "base@base", *given)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    layout, below = LayoutReader(place / "four"), LayoutReader(place / "base")
    manifest = layout.manifest(found["digest"])
    (entry,) = below.manifest_or_index(below.resolve()).manifests
    assert manifest.layers[:2] == below.manifest(entry.digest).layers
    assert len(manifest.layers) == 5
    config = json.loads(layout.read_blob(manifest.config.digest, bytes_max=100_000))
    assert "PATH=/opt/cuda/bin:/usr/bin:/bin" in config["config"]["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=all" in config["config"]["Env"]
    assert len(config["rootfs"]["diff_ids"]) == 5
    assert manifest.annotations["org.opencontainers.image.base.digest"] == entry.digest
    cases = [
        (["--base", "base@base", "--base-rootfs", "arm64.tar"], 2, "not both"),
        ([], 2, "rpi5: its profile names no base"),
        (["--base", "127.0.0.1:1/base@sha256:" + "0" * 64], 5, "not reachable"),
        (["--base", "base@none"], 3, "no manifest none"),
    ]
    for words, code, text in cases:
        done = image(place, "build", "bundles", "-t", "rpi5", *words, *given[:4], "--out", "bad")
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert not (place / "bad").exists()


def test_an_image_is_saved_for_docker_load(place, built):
    done = image(place, "save", "one@meter-1-rpi5", "--out", "x.tar", "--name", "meter:1")
    assert done.returncode == 0, done.stderr
    done = image(place, "save", "one@meter-1", "--out", "y.tar")
    assert (done.returncode, (place / "y.tar").exists()) == (3, False)


def test_what_cannot_be_is_refused_before_anything_is_written(place, built):
    cases = [
        (build(place, "bad", root="amd64.tar"), 3, "rpi5 is arm64, the base is amd64"),
        (build(place, "bad", root="none.tar"), 3, "cannot read none.tar"),
        (build(place, "bad", target="rpi4"), 2, "holds no bundle for rpi4"),
        (build(place, "bad", "-t", "x86-64-v3"), 2, "once for each --target"),
    ]
    for done, code, text in cases:
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
        assert "hint: " in done.stderr or code == 2
    assert not (place / "bad").exists()


def test_an_old_base_is_named_with_its_mend(place, built):
    roots.write(place / "old.tar", roots.base("arm64", glibc="2.19"))
    done = build(place, "bad", root="old.tar")
    assert done.returncode == 3
    assert "needs glibc 2." in done.stderr
    assert "hint: use debian" in done.stderr
    assert not (place / "bad").exists()


def test_without_an_engine_the_error_says_where_it_was_looked_for(place, built, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    for words in (("load", "one@meter-1-rpi5"), ("selftest", "x:1"), ("push", "x:1", "h.x/m:1")):
        done = image(place, *words)
        assert done.returncode == 5, done.stderr
        assert "no container engine answers at unix:///nonexistent/docker.sock" in done.stderr
        assert "hint: is it running? start it, or name another with DOCKER_HOST" in done.stderr
