"""The commands as a user meets them: exit codes, error and hint lines, nothing half-written."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from buildkit import graphs

from edgekit.cli.main import main
from edgekit.contracts import codec

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from edgekit.cli.main import main; main()"]


class Shell:
    """Runs edgekit in a folder with its own registry and cache."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {
            **os.environ,
            "EDGEKIT_REGISTRY": str(folder / "registry"),
            "EDGEKIT_CACHE": str(folder / "cache"),
        }

    def __call__(self, *words, **options):
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    graphs.save(graphs.classifier(hidden=256), folder / "Waves.onnx")
    graphs.save_data(folder / "data.npz")
    return Shell(folder)


@pytest.fixture(scope="module")
def built(shell):
    done = shell("build", "./Waves.onnx", "--data", "data.npz", "-t", "rpi5")
    assert done.returncode == 0, done.stderr
    return done


def test_the_shortest_story(shell, built):
    assert "rpi5    int8" in built.stdout
    assert "bundle" in built.stdout
    assert "assumed: quality metric top1: the data has labels" in built.stderr
    assert "registered waves version 1" in built.stderr
    assert "] rpi5: final evaluation" in built.stderr
    assert (shell.folder / "build-out" / "index.json").is_file()


def test_build_by_name_prints_the_record_as_json(shell, built):
    done = shell("build", "waves:1", "-t", "rpi5", "--out", "again", "--json")
    record = json.loads(done.stdout)
    assert record["variants"][0]["latency_ms"] is None
    assert record == json.loads((shell.folder / "again" / "build-record.json").read_text())


def test_inspect_verifies_and_shows_gates(shell, built):
    done = shell("inspect", "build-out@waves-1-rpi5")
    assert done.returncode == 0
    assert "gate       top1_drop pass" in done.stdout
    assert "verified" in done.stdout
    listed = json.loads(shell("inspect", "build-out", "--json").stdout)
    assert [entry["tag"] for entry in listed] == ["waves-1-rpi5"]


def test_corrupted_bundle_is_exit_3(shell, built):
    listed = json.loads(shell("inspect", "build-out", "--json").stdout)
    model = listed[0]["manifest"]["files"][0]["sha256"].removeprefix("sha256:")
    blob = shell.folder / "build-out" / "blobs" / "sha256" / model
    raw = blob.read_bytes()
    try:
        blob.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        done = shell("inspect", "build-out")
    finally:
        blob.write_bytes(raw)
    assert done.returncode == 3
    assert "corrupted" in done.stderr
    assert "hint: build or pull the bundle again" in done.stderr
    assert not done.stdout


def test_bundle_commands(shell, built):
    done = shell("bundle", "verify", "build-out")
    assert done.returncode == 0
    assert done.stdout.startswith("ok  sha256:")
    done = shell("bundle", "unpack", "build-out", "--out", "files")
    assert done.returncode == 0, done.stderr
    assert (shell.folder / "files" / "model.onnx").is_file()
    assert shell("bundle", "unpack", "build-out", "--out", "files").returncode == 3
    done = shell("bundle", "diff", "build-out", "build-out@waves-1-rpi5", "--json")
    found = json.loads(done.stdout)
    assert (found["transfer_bytes"], found["shared_bytes"]) == (0, found["total_bytes"])
    assert "to transfer 0 of" in shell("bundle", "diff", "build-out", "build-out").stdout
    assert shell("bundle", "inspect", "build-out").stdout == shell("inspect", "build-out").stdout


def test_registry_commands(shell, built):
    assert "waves  1" in shell("model", "list").stdout
    shown = shell("model", "show", "waves").stdout
    assert "input    x  float32[batch, 16]" in shown
    added = shell("dataset", "add", "data.npz")
    digest = added.stdout.strip()
    assert digest.startswith("sha256:")
    assert shell("dataset", "show", digest[:20]).stdout.startswith(digest)
    assert digest in shell("dataset", "list").stdout
    done = shell("model", "add", "waves", "Waves.onnx", "--data", digest, "--version", "b")
    assert (done.returncode, done.stdout) == (0, "waves:b\n")


def test_targets_commands(shell):
    assert "x86-64-vnni" in shell("targets", "list").stdout
    assert json.loads(shell("targets", "show", "rpi5", "--json").stdout)["arch"] == "aarch64"


def wrong_inputs(folder: Path):
    """Files that are wrong in one way each."""
    x, labels = graphs.waves()
    nan = x.copy()
    nan[5, 5] = np.nan
    np.savez(folder / "nan.npz", x=nan, labels=labels)
    np.savez(folder / "empty.npz", x=x[:0], labels=labels[:0])
    np.savez(folder / "shape.npz", x=x[:, :7], labels=labels)
    (folder / "text.onnx").write_text("this is not a model")
    contract = {
        "inputs": [{"name": "x", "dtype": "float64", "shape": ["batch", 16]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
        "quality": {"metric": "top1", "drop_max": 0.02},
    }
    (folder / "contract.json").write_bytes(codec.encode(contract))
    (folder / "occupied").mkdir(exist_ok=True)
    (folder / "occupied" / "thesis.txt").write_text("mine")


FILE = ["Waves.onnx", "-t", "rpi5"]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["none.onnx", "-t", "rpi5", "--data", "data.npz"], 3, "none.onnx: no such file"),
        (["text.onnx", "-t", "rpi5", "--data", "data.npz"], 3, "text.onnx: not an ONNX file"),
        (["nothing", "-t", "rpi5"], 3, "model 'nothing' is not in the registry"),
        (FILE, 3, "no data"),
        ([*FILE, "--data", "none.npz"], 3, "none.npz: no such file"),
        ([*FILE, "--data", "empty.npz"], 3, "empty.npz: holds no samples"),
        ([*FILE, "--data", "shape.npz"], 3, "array 'x' has shape [900, 7]"),
        ([*FILE, "--data", "nan.npz"], 3, "array 'x', 1 of 900 samples (first: sample 5)"),
        (
            [*FILE, "--data", "data.npz", "--contract", "contract.json"],
            3,
            "inputs.x.dtype is float64, the graph's is float32",
        ),
        ([*FILE, "--data", "data.npz", "--contract", "none.json"], 3, "none.json"),
        ([*FILE, "--data", "data.npz", "--drop-max", "0.001"], 3, "needs at least 3975 samples"),
        (["Waves.onnx", "-t", "rpi6", "--data", "data.npz"], 2, "unknown target 'rpi6'"),
        (["Waves.onnx", "--data", "data.npz"], 2, "Missing option '--target'"),
    ],
)
def test_bad_input_is_one_line_with_a_hint(tmp_path, monkeypatch, capsys, *, words, code, error):
    graphs.save(graphs.classifier(), tmp_path / "Waves.onnx")
    graphs.save_data(tmp_path / "data.npz")
    wrong_inputs(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKIT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["edgekit", "build", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    done = capsys.readouterr()
    lines = done.err.strip().splitlines()
    assert ended.value.code == code
    assert lines[-2].startswith("error: ")
    assert error in lines[-2]
    assert lines[-1].startswith("hint: ")
    assert not done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_with_other_files_is_not_written_to(shell, built):
    wrong_inputs(shell.folder)
    done = shell("build", "waves", "-t", "rpi5", "--out", "occupied")
    assert done.returncode == 3
    assert "is not empty and not an OCI layout" in done.stderr
    assert [path.name for path in (shell.folder / "occupied").iterdir()] == ["thesis.txt"]


def test_a_failed_gate_is_exit_4_with_the_record(shell, built):
    shown = json.loads(shell("model", "show", "waves:1", "--json").stdout)
    contract = {**shown["contract"], "budgets": {"rpi5": {"size_bytes_max": 10}}}
    (shell.folder / "tight.json").write_bytes(codec.encode(contract))
    words = ["Waves.onnx", "--data", "data.npz", "--contract", "tight.json", "-t", "rpi5"]
    done = shell("build", *words, "--out", "tight")
    assert done.returncode == 4
    assert "error: rpi5: gate size_bytes failed" in done.stderr
    assert "gate failed" in done.stdout
    left = {path.name for path in (shell.folder / "tight").iterdir()}
    assert left == {"build-record.json", "build-report.html"}


def test_a_full_disk_is_exit_6_and_leaves_no_bundle(shell, built, tmp_path):
    """No file may grow beyond 2 KiB: the first larger write fails as it does on a full disk."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    words = ["build", "waves:1", "-t", "rpi5", "--out", "full", "--cache", str(tmp_path / "cache")]
    done = shell(*words, preexec_fn=limit)
    assert done.returncode == 6, done.stderr
    assert "error: cannot write" in done.stderr
    assert "hint: free space" in done.stderr
    assert not (shell.folder / "full").exists()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
