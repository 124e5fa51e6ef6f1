"""The snippets of docs/embedding.md, run as they stand there against a real session."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from agentkit import layouts
from agentkit.embedding import Host

from edgekit_runtime import config, guard

PAGE = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text()


@pytest.fixture
def host(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    found = Host(tmp_path / "state", writer.root)
    found.device.deploy(1, writer.add(seed=1), "v1")
    yield found
    found.applications.close()
    found.loop.close()


def test_the_snippets_run_in_their_order(host, capsys):
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, object] = {}
    with host.turning():
        for snippet in snippets:
            exec(snippet.replace("/var/lib/edgekit", str(host.root)), names)
    first, _, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("1 a ")
    assert others == ["a", "c", "['1', '1', '1']"]
    assert host.device.counting.produced() == 1 + 2 + 3


def test_the_commands_run_as_they_stand_there(host, tmp_path, monkeypatch, capsys):
    from edgekit_runtime.cli import app

    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("agent.toml").write_text('[device]\nid = "d"\nstate_dir = "state"\n')
    np.savez("rows.npz", x=np.zeros((5, 4), np.float32))
    Path("rows.csv").write_text("a,b,c,d\n1,2,3,4\n")
    for line in block.splitlines():
        command, *words = line.replace("@v1", "@1").split()
        assert command == "edgekit-agent"
        app(words, standalone_mode=False)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "answers.npz: 5 samples, scores [5, 3]"
    assert any('"samples": 1' in line for line in others)


def test_the_configuration_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "agent.toml"
    path.write_text(f'[device]\nid = "d"\nstate_dir = "{tmp_path}"\n{text}')
    assert config.load(path, {}).serve.workers is False


def test_every_flag_is_explained():
    for name in guard.Flags.__members__:
        assert name == "NONE" or f"`{name}`" in PAGE
