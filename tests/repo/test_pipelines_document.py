"""docs/pipelines.md: its configuration is taken, its commands run as they stand, its keys exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from agentkit import layouts
from agentkit.ports import free_port
from agentkit.world import World

from edgekit_runtime import config
from edgekit_runtime.pipelines import counts, spec

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "pipelines.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.integration
def test_the_example_runs_as_it_stands(tmp_path):
    """Only folders and ports differ."""
    writer = layouts.LayoutWriter(tmp_path / "layout")
    world = World(tmp_path, writer.root)
    port, (table,), (commands,) = free_port(), blocks("toml"), blocks("sh")
    here = {"8480": str(port), "/var/lib/edgekit": str(tmp_path / "var")}
    for told, found in here.items():
        table, commands = table.replace(told, found), commands.replace(told, found)
    try:
        agent = world.agent(extra=table.partition("[[pipeline]]")[2].join(["[[pipeline]]", ""]))
        world.manager.deploy("dev-1", writer.add(), release="v1")
        world.manager.wait_state("dev-1", "TRIAL")
        push, look, status = commands.splitlines()
        ask = f"curl --retry 30 --retry-connrefused --retry-delay 1 {push.partition(' ')[2]}"
        assert '"id":"r-1"' in _run(ask)
        path = tmp_path / "var" / "yard.jsonl"
        line = ""
        for _ in range(300):
            line = _run(look) if path.exists() else ""
            if line:
                break
            agent.get("/v2/health/ready")
        for key in ("pipeline", "id", "at", "answered_at", "model", "version", "slot", "flags"):
            assert f'"{key}":' in line
        status = status.replace("edgekit-agent", f"{sys.executable} -m edgekit_runtime")
        assert "pipeline yard: running" in _run(status.replace("agent.toml", str(agent.config)))
    finally:
        world.close()


def _run(command):
    done = subprocess.run(
        ["bash", "-ec", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_a_whole_configuration(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(blocks("toml")[0])
    assert [each.name for each in config.load(path, {}).pipeline] == ["yard"]


def test_every_key_and_every_reason_is_in_the_document():
    kinds = (
        spec.PipelineSpec, spec.MqttSource, spec.FolderSource, spec.HttpSource, spec.CameraSource,
        spec.FileSink, spec.MqttSink, spec.WebhookSink,
    )  # fmt: skip
    names = {name for kind in kinds for name in kind.__struct_fields__}
    names |= {*counts.REFUSED, *counts.DROPPED}
    for kind in (spec.Drop, spec.Payload, spec.Fit, spec.Colour, spec.Fsync, spec.After):
        names |= {each.value for each in kind}
    assert {name for name in names if f"`{name}`" not in TEXT} == set()
