"""What ``edgekit-agent slots|logs|doctor`` say about a real device."""

from __future__ import annotations

import json

import pytest
from agentkit import layouts
from agentkit.world import QUICK, World, wait_for

from edgekit_runtime import ringlog

pytestmark = pytest.mark.integration


def _json(agent, *arguments):
    done = agent.cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _doctor(agent):
    done = agent.cli("doctor", "--json")
    assert "Traceback" not in done.stderr
    return done.returncode, {
        (check["name"], check["status"]): check for check in json.loads(done.stdout)
    }


def test_slots_logs_and_doctor_of_a_device_that_refused_a_release(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    good, liar = writer.add(seed=1, version="1"), writer.add(seed=2, version="2", golden_seed=3)
    world = World(tmp_path, writer.root)
    try:
        agent = world.agent()
        world.manager.deploy("dev-1", good, release="v1")
        world.manager.wait_state("dev-1", "TRIAL")
        for _ in range(QUICK.confirm_inferences_min):
            agent.infer(None)
        world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
        world.manager.deploy("dev-1", liar, release="v2")
        wait_for(lambda: liar in world.manager.model("dev-1").failed, what="v2 refused")

        active, refused = _json(agent, "slots")
        assert (active["role"], active["digest"], active["release"]) == ("active", good, "v1")
        assert active["bytes_held"] == active["bytes_total"] > 0
        assert "confirmed" in active["why"]
        assert (refused["role"], refused["digest"]) == ("quarantine", liar)
        assert "golden set" in refused["why"]
        text = agent.cli("slots").stdout
        assert "quarantine" in text

        code, checks = _doctor(agent)
        assert code == 0, checks
        assert ("quarantine", "warn") in checks
        assert ("endpoint", "ok") in checks
        assert ("broker", "ok") in checks
        assert checks["model", "ok"]["detail"] == "meter (active): version 1, every file intact"

        world.broker.kill()
        assert agent.stop() == 0
        entries = _json(agent, "logs")
        assert any(e["source"] == "log" and "connected to broker" in e["text"] for e in entries)
        assert entries == sorted(entries, key=lambda entry: entry["at"])
        assert len(_json(agent, "logs", "--lines", "3")) == 3
        assert list((agent.state / ringlog.FOLDER).iterdir())

        code, checks = _doctor(agent)
        assert code == 5
        assert "no agent runs" in checks["endpoint", "fail"]["detail"]
        assert ("broker", "fail") in checks
        done = agent.cli("doctor")
        assert "mend: " in done.stdout
        assert done.stderr.startswith("error: 2 of ")
    finally:
        world.close()
