"""``edgekit-agent infer`` as a process: killed, resumed, refused, with and without a device."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from agentkit import layouts
from agentkit.embedding import Host
from agentkit.world import wait_for

pytestmark = pytest.mark.integration
ROWS = np.random.default_rng(8).normal(size=(200_000, 4)).astype(np.float32)


@pytest.fixture
def writer(tmp_path):
    return layouts.LayoutWriter(tmp_path / "layout")


def _command(*words) -> list[str]:
    return [sys.executable, "-m", "edgekit_runtime", "infer", *map(str, words)]


def _run(*words) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*words), capture_output=True, text=True, check=False, timeout=120
    )


def test_a_killed_run_goes_on_and_gives_the_whole_answer(tmp_path, writer):
    writer.add(seed=1, tag="v1")
    data, out, parts = tmp_path / "in.npz", tmp_path / "out.npz", tmp_path / ".out.npz.parts"
    np.savez(data, x=ROWS)
    words = (f"{writer.root}@v1", "--in", data, "--out", out, "--chunk", "2000")
    process = subprocess.Popen(_command(*words), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(parts.glob("*.npz"))) >= 3, what="some chunks are done")
    process.kill()
    process.wait()
    finished = out.exists()  # it was too fast for us: the test is only weaker
    done = _run(*words, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["samples"] == len(ROWS)
    assert told["resumed"] >= 3 * 2000 or finished
    scores = np.load(out)["scores"]
    np.testing.assert_allclose(scores, layouts.reference(1, ROWS), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "layout", "out.npz"]


def test_a_deployed_model_answers_without_its_agent_and_says_what_is_wrong(tmp_path, writer):
    host = Host(tmp_path / "state", writer.root)
    host.device.deploy(1, writer.add(seed=1), "v1")
    host.applications.close()
    host.loop.close()
    config = tmp_path / "agent.toml"
    config.write_text(f'[device]\nid = "d"\nstate_dir = "{tmp_path / "state"}"\n')
    data, out = tmp_path / "in.csv", tmp_path / "out.npz"
    data.write_text("a,b,c,d\n1,2,3,4\n1,nan,3,4\n5,6,7,8\n")
    words = ("--in", data, "--out", out, "--config", config)
    refused = _run("meter", *words)
    assert refused.returncode == 3
    assert "error: 1 of 3 rows break the contract and have no answer: 1;" in refused.stderr
    assert "hint: " in refused.stderr
    assert np.load(out)["refused_rows"].tolist() == [1]
    allowed = _run("meter", *words, "--refused-max", "1")
    assert (allowed.returncode, allowed.stderr) == (0, "")
    assert "3 samples, scores [3, 3]" in allowed.stdout
    for name, more, code, text in (
        ("other", words, 3, "'other' is not deployed here"),
        ("other", words[:4], 2, "no such folder"),
        ("meter", ("--in", tmp_path / "absent.npz", *words[2:]), 3, "absent.npz"),
        ("meter", ("--in", data, "--out", tmp_path / "a" / "b.npz", *words[4:]), 0, ""),
    ):
        done = _run(name, *more, "--refused-max", "1")
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr
