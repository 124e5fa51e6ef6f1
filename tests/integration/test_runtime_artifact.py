"""Runtimes as artifacts: built for this machine and a foreign one, verified, unpacked, run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from agentkit.layouts import LayoutWriter
from fleetkit.processes import EDGEKIT, edgekit

from edgekit.contracts import digest, oci
from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.contracts.runtime import ARTIFACT_TYPE
from edgekit.package import reader, runtime

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
GLIBC = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
BASE_PYTHON = Path(sys.base_prefix) / "bin" / f"python{PYTHON}"  # has none of our packages


def build(out, arch=ARCH, python=PYTHON, glibc=GLIBC, *words):
    options = ["--arch", arch, "--python", python, "--glibc", glibc, "--out", str(out), *words]
    return subprocess.run(
        [*EDGEKIT, "runtime", "build", *options, "--json"],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("runtime") / "layout"
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)[0]


def test_the_same_inputs_give_the_same_artifact(tmp_path, built):
    out, found = built
    again = json.loads(build(tmp_path / "again").stdout)[0]
    assert again["digest"] == found["digest"]
    layout = oci.LayoutReader(out)
    manifest = layout.manifest(found["digest"])
    assert manifest.artifact_type == ARTIFACT_TYPE
    assert manifest.annotations["edgekit.runtime.glibc"] == GLIBC
    names = [file["path"] for file in found["manifest"]["files"]]
    assert names[0].startswith("edgekit_ml-")
    assert {"numpy", "onnxruntime", "msgspec", "paho-mqtt"} <= found["manifest"]["packages"].keys()
    sbom = next(f for f in found["manifest"]["files"] if f["path"] == "sbom.cdx.json")
    told = json.loads(layout.read_blob(sbom["sha256"], bytes_max=10**6))
    licences = {each["name"]: each.get("licenses") for each in told["components"]}
    assert licences["onnxruntime"] == [{"license": {"id": "MIT"}}]
    assert all(licences.values()), licences


def test_what_is_unpacked_runs_a_model_with_its_own_engine(tmp_path, built):
    out, found = built
    done = edgekit("runtime", "unpack", str(out), "--out", str(tmp_path / "runtimes"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runtimes" / digest.hex_of(found["digest"])
    assert done.stdout.strip() == str(folder)
    writer = LayoutWriter(tmp_path / "bundle")
    writer.add()
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 4), np.float32))
    command = [str(BASE_PYTHON), "-m", "edgekit_runtime.evaluate", str(writer.root)]
    told = subprocess.run(
        [*command, "--data", str(tmp_path / "data.npz"), "--json"],
        env={"PATH": os.defpath, "PYTHONPATH": str(folder / "site")}, cwd=tmp_path,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert facts["golden"]["outcome"] == "pass"
    assert found["manifest"]["engines"]["onnxruntime"] in told.stdout
    version = subprocess.run(
        [str(BASE_PYTHON), "-I", str(folder / "agent.py"), "--version"],
        env={"PATH": os.defpath}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert version.stdout.startswith("edgekit-agent "), version.stderr


def test_damage_is_found_in_the_layout_and_where_it_was_unpacked(tmp_path, built):
    out, _ = built
    folder = runtime.unpack(*runtime.find_all(oci.LayoutReader(out), None), tmp_path / "runtimes")
    (folder / "agent.py").write_text("import os")
    done = edgekit("runtime", "verify", str(folder))
    assert (done.returncode, "agent.py: missing, altered or added" in done.stderr) == (3, True)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(out), str(copy)], check=True)
    assert len(runtime.find_all(oci.LayoutReader(copy), None)) == 1
    victim = next((copy / "blobs" / "sha256").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(BadInputError):
        runtime.find_all(oci.LayoutReader(copy), None)
    done = edgekit("runtime", "unpack", str(copy), "--out", str(tmp_path / "no"))
    assert done.returncode == 3
    assert not (tmp_path / "no").exists()


def test_another_platform_is_one_option(tmp_path):
    done = build(tmp_path / "arm", "arm64", PYTHON, "2.36")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    wheels = [f["path"] for f in found["manifest"]["files"] if "onnxruntime" in f["path"]]
    assert "aarch64" in wheels[0]
    assert build(tmp_path / "x", "riscv64").returncode == 2
    with pytest.raises(UsageError, match="is no version"):
        runtime.facts(ARCH, "three", GLIBC)
    platform = runtime.facts(ARCH, PYTHON, GLIBC)
    with pytest.raises(UsageError, match="NAME==VERSION"):
        runtime.build(platform, tmp_path, tmp_path / "x", more=["openvino>=2025"])


def test_a_bundle_is_no_runtime(tmp_path):
    writer = LayoutWriter(tmp_path / "bundle")
    name = writer.add()
    layout = oci.LayoutReader(writer.root)
    with pytest.raises(BadInputError, match="not a runtime"):
        runtime.read(layout, name)
    assert reader.read(layout, name).manifest.model == "meter"
