"""skopeo and the oras client against what we write and serve; both are other people's code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packagekit.servers import serving

from edgekit.build.ports import BundleContent, BundleHead
from edgekit.contracts.bundle import Role
from edgekit.contracts.oci import LayoutReader
from edgekit.package import reader
from edgekit.package.bundle import write_bundle

pytestmark = pytest.mark.integration
EDGEKIT = (sys.executable, "-c", "from edgekit.cli.main import main; main()")
MODEL = bytes(range(256)) * 1000


@pytest.fixture
def place(tmp_path):
    head = BundleHead("meter", "1", "rpi5", "int8", "onnxruntime", ">=1.20")
    contents = [
        BundleContent("model.onnx", Role.MODEL, MODEL),
        BundleContent("contract.json", Role.CONTRACT, b"{}"),
    ]
    write_bundle(tmp_path / "layout", head, contents)
    return tmp_path


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path / "store") as served:
        yield served


def run(*command, ok=True):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode == 0) == ok, done.stderr
    return done


def skopeo(*words):
    if shutil.which("skopeo") is None:
        if os.environ.get("CI"):
            pytest.fail("skopeo is not on PATH, and CI shows that real clients read our artifacts")
        pytest.skip("skopeo is not on PATH (apt-get install skopeo)")
    return run("skopeo", *words)


def push(place, served):
    done = run(*EDGEKIT, "push", str(place / "layout"), f"{served.host}/meter:1", "--json")
    return json.loads(done.stdout)["digest"]


def test_skopeo_reads_our_layout_and_our_registry(place, served):
    written = LayoutReader(place / "layout").resolve()
    layout = f"oci:{place / 'layout'}:meter-1-rpi5"
    raw = json.loads(skopeo("inspect", "--raw", layout).stdout)
    assert raw["artifactType"] == "application/vnd.edgekit.bundle.v1"
    skopeo("copy", layout, f"oci:{place / 'one'}:1")
    assert reader.find(f"{place / 'one'}@1").digest == written
    assert push(place, served) == written
    there = f"docker://{served.host}/meter:1"
    skopeo("copy", "--src-tls-verify=false", there, f"oci:{place / 'two'}:1")
    assert reader.find(f"{place / 'two'}@1").digest == written
    listed = skopeo("list-tags", "--tls-verify=false", f"docker://{served.host}/meter")
    assert json.loads(listed.stdout)["Tags"] == ["1"]


def test_skopeo_pushes_and_we_pull(place, served):
    written = LayoutReader(place / "layout").resolve()
    layout = f"oci:{place / 'layout'}:meter-1-rpi5"
    skopeo("copy", "--dest-tls-verify=false", layout, f"docker://{served.host}/a/b:2")
    done = run(*EDGEKIT, "pull", f"{served.host}/a/b:2", "--out", str(place / "out"))
    assert written in done.stdout
    assert reader.find(f"{place / 'out'}@2").digest == written


def test_oras_pulls_files_by_their_names_and_pushes_in_chunks(place, served):
    import oras.client

    push(place, served)
    client = oras.client.OrasClient(hostname=served.host, insecure=True)
    files = client.pull(target=f"{served.host}/meter:1", outdir=str(place / "files"))
    assert sorted(Path(name).name for name in files) == ["contract.json", "model.onnx"]
    assert (place / "files" / "model.onnx").read_bytes() == MODEL
    assert client.get_tags(f"{served.host}/meter") == ["1"]
    for chunked in (False, True):
        name = f"chunked-{chunked}".lower()
        client.push(
            target=f"{served.host}/{name}:1", files=[str(place / "files" / "model.onnx")],
            do_chunked=chunked, chunk_size=100_000, disable_path_validation=True,
        )  # fmt: skip
        run(*EDGEKIT, "pull", f"{served.host}/{name}:1", "--out", str(place / name))


def test_errors_of_a_registry_are_one_line_with_a_hint(place, served):
    done = run(*EDGEKIT, "pull", f"{served.host}/none:1", "--out", str(place / "x"), ok=False)
    assert (done.returncode, done.stderr.count("error: "), done.stderr.count("hint: ")) == (3, 1, 1)
    done = run(*EDGEKIT, "pull", "127.0.0.1:1/none:1", "--out", str(place / "x"), ok=False)
    assert (done.returncode, "not reachable" in done.stderr) == (5, True)
    done = run(*EDGEKIT, "push", str(place / "layout"), "meter:1", ok=False)
    assert (done.returncode, "no registry host" in done.stderr) == (2, True)
