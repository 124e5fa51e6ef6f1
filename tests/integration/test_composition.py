"""One request to a model that another one feeds: in workers, and inside an application."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from agentkit import composing, layouts
from agentkit.world import QUICK, wait_for

from edgekit.contracts.composition import Link
from edgekit.contracts.messages import Deployment, VariantRef
from edgekit_runtime import Flags, GuardError, Session

pytestmark = pytest.mark.integration
ROW = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)


def _second(digest: str, *links) -> dict[str, Deployment]:
    variant = VariantRef(digest=digest, repository="second", size=1)
    deployment = Deployment(
        rollout="second-rollout",
        wave=0,
        release="second-1",
        variants={"x86-64-v3": variant},
        policy=QUICK,
        compose=links,
    )
    return {"second": deployment}


def _ask(agent, request_id=None, row=ROW):
    data = [float(value) for value in row.ravel()]
    tensor = {"name": "x", "shape": list(row.shape), "datatype": "FP32", "data": data}
    body = {"inputs": [tensor], **({"id": request_id} if request_id else {})}
    return agent.post("/v2/models/second/infer", body)


def _want(seed: int) -> np.ndarray:
    return composing.reference(layouts.reference(seed, ROW))


def _windows(world, model: str) -> int:
    return sum(window.n for window in world.manager.windows if window.model == model)


def test_one_request_runs_both_and_says_both_versions(world, writer):
    first = [writer.add(seed=seed, version=str(seed)) for seed in (1, 2)]
    second = composing.add(writer)
    agent = world.agent()
    world.manager.deploy("dev-1", first[0], release="v1", more=_second(second, composing.LINK))
    status, body = wait_for(
        lambda: (found := _ask(agent, "r-1"))[0] == 200 and found, what="both serve"
    )
    assert status == 200
    np.testing.assert_allclose(body["outputs"][0]["data"], _want(1).ravel(), atol=1e-5)
    assert (body["model_version"], body["parameters"]["sources"]) == ("1", {"meter": "1"})
    # The same id again: answered, and counted once in each.
    assert _ask(agent, "r-1")[1]["parameters"]["counted"] is False
    told = agent.get("/v2/models/second")[1]
    assert told["edgekit_compose"] == msgspec.json.decode(msgspec.json.encode([composing.LINK]))
    # What is given is taken as it is, and nobody is asked.
    given = {"name": "s", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 0]}
    status, body = agent.post("/v2/models/second/infer", {"inputs": [given]})
    assert (status, "sources" in body["parameters"]) == (200, False)
    # A bad input is the first one's to refuse; one that nobody takes is the second one's.
    status, body = _ask(agent, row=np.ones((1, 3)))
    assert status == 400
    assert "meter, which feeds this model" in body["error"]
    status, body = agent.post(
        "/v2/models/second/infer",
        {"inputs": [{**given, "name": "nonsense"}]},
    )
    assert status == 400
    # Each model moves by itself.
    for number in range(6):
        assert _ask(agent, f"s-{number}")[0] == 200
    world.manager.wait_state("dev-1", "CONFIRMED", release="v1")
    world.manager.deploy("dev-1", first[1], release="v2", more=_second(second, composing.LINK))

    def moved():
        status, body = _ask(agent)
        assert status == 200, body
        return body["parameters"]["sources"] == {"meter": "2"} and body

    body = wait_for(moved, what="the first model is version 2")
    np.testing.assert_allclose(body["outputs"][0]["data"], _want(2).ravel(), atol=1e-5)
    with Session.open("second", state_dir=agent.state) as session:
        result = session.infer({"x": ROW}, request_id="e-1")
        np.testing.assert_allclose(result.outputs["y"], _want(2), atol=1e-5)
        assert (result.version, dict(result.sources)) == ("1", {"meter": "2"})
        assert result.flags == Flags.NONE
        assert session.infer({"s": np.ones((1, 3), np.float32)}).sources == {}
        with pytest.raises(GuardError):
            session.infer({"x": ROW * np.nan})
    produced = agent.status()["totals"]["produced"]
    wait_for(lambda: world.manager.counted == produced, what="everything is counted")
    assert _windows(world, "second") == _windows(world, "meter") + 2


def test_a_feeder_that_is_not_there_is_said_and_a_circle_is_refused(world, writer):
    second = composing.add(writer)
    agent = world.agent()
    lonely = msgspec.structs.replace(composing.LINK, model="absent")
    world.manager.deploy("dev-1", writer.add(seed=1), release="v1", more=_second(second, lonely))
    status, _ = wait_for(
        lambda: (found := _ask(agent))[0] != 404 and "absent" in found[1]["error"] and found,
        what="second serves",
    )
    assert status == 503
    gen = world.manager.deploy(
        "dev-1",
        writer.add(seed=2, version="2"),
        release="v2",
        compose=(Link(input="x", model="second", output="y", inputs=("s",)),),
        more=_second(second, composing.LINK),
    )
    wait_for(lambda: "circle" in world.manager.reported["dev-1"].note, what="the circle is refused")
    assert world.manager.reported["dev-1"].gen_observed < gen
    assert agent.infer(None)[0] == 200
