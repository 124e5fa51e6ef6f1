"""A fleet that holds v1 gets v2 as a delta: real broker, manager, agent and commands."""

import json

import pytest
from agentkit import layouts
from agentkit.world import AgentProcess
from fleetkit.processes import Broker, Manager, edgekit, running, wait_for

from edgekit.cli import release_file
from edgekit.contracts import oci
from edgekit.contracts.messages import VariantRef
from edgekit.contracts.release import Release
from edgekit.package import reader

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
BACKBONE = 50_000  # weights: the model file is 200 kB
POLICY = {"confirm_inferences_min": 3, "confirm_s_min": 0.2, "delta_fallback": "fail"}


class Site:
    def __init__(self, folder):
        self.folder = folder
        self.broker = Broker("iotcore", folder)
        self.manager = Manager(self.broker.port, folder)
        self.agent = AgentProcess(folder, "dev-1", self.broker.port)

    def release(self, number, *words):
        writer = layouts.LayoutWriter(self.folder / f"v{number}")
        model = layouts.model_bytes(number, backbone=BACKBONE)
        digest = writer.add(seed=number, version=str(number), files={"model": model})
        bundle = reader.read(oci.LayoutReader(writer.root), digest)
        variant = VariantRef(digest=digest, repository="meter", size=bundle.size)
        name = f"meter-v{number}"
        release = Release(
            name=name, model="meter", version=str(number), variants={"x86-64-v3": variant}
        )
        path = self.folder / f"{name}.release.json"
        release_file.write(path, release, [writer.root])
        done = self.command("release", "publish", str(path), "--json", *words)
        return bundle, json.loads(done)

    def roll_out(self, number):
        name = f"meter-v{number}"
        wave = {"name": "all", "percent": 100.0, "soak_s": 0.2, "looks": 1, "timeout_s": 120.0}
        spec = {"name": name, "release": name, "waves": [wave], "policy": POLICY}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        self.command("fleet", "rollout", "start", str(path))
        wait_for(lambda: self.confirmed(name), f"{name} on the device", timeout_s=90)
        # It soaks a little longer than the device takes; the next one has to wait for that.
        wait_for(lambda: self.succeeded(name), f"{name} has succeeded", timeout_s=90)

    def succeeded(self, name):
        return self.manager.get(f"/rollouts/{name}")["status"] == "succeeded"

    def confirmed(self, release):
        self.agent.infer(None)
        found = self.manager.get("/devices")
        report = found[0]["models"].get("meter") if found else None
        right = report and report["active"] and report["active"]["release"] == release
        return report if right and report["state"] == "CONFIRMED" else None

    def command(self, *words):
        done = edgekit(*words, env={"EDGEKIT_MANAGER": self.manager.url})
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_a_device_that_holds_v1_fetches_a_delta_to_v2(tmp_path):
    site = Site(tmp_path)
    with running(site.broker, site.manager):
        try:
            site.agent.start()
            wait_for(lambda: site.manager.get("/devices"), "joining")
            first, told = site.release(1)
            assert told["deltas"] == []
            site.roll_out(1)
            assert site.confirmed("meter-v1")["fetched_bytes"] == first.size
            held = site.manager.get("/models/meter/field")
            assert [(e["digest"], e["devices"], e["repository"]) for e in held] == [
                (first.digest, 1, "meter")
            ]
            second, told = site.release(2)
            (made,) = told["deltas"]
            assert (made["devices"], made["facts"]["base"]) == (1, first.digest)
            site.roll_out(2)
            report = site.confirmed("meter-v2")
            assert report["fetched_bytes"] < 0.1 * second.size
            beside = report["fetched_bytes"] - made["facts"]["transfer_bytes"]
            assert 0 < beside < 1000  # the list of referrers
            _, told = site.release(3, "--delta-from", str(tmp_path / "v1"))
            bases = {made["facts"]["base"]: made["devices"] for made in told["deltas"]}
            assert bases == {first.digest: None, second.digest: 1}
            _, told = site.release(4, "--no-delta")
            assert told["deltas"] == []
        finally:
            site.agent.kill()
