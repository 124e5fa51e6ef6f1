"""Rollouts under a storm, then in a calm: safety always, liveness at the end.

Devices come and go, refuse, and the manager loses commits, as Hypothesis pleases; a seed replays a
failure. Whatever happens: no device outside the drawn waves ever gets the release, a stopped
rollout hands it out no more, and a wave opens only after the one before it passed. Once the
storm is over, a good release reaches everyone and a bad one nobody.
"""

from conftest import SCALE
from fleetkit.world import Fleet, make_spec, release
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_fleet.rollout import core
from edgekit_fleet.rollout.model import Observation, Phase, Status
from edgekit_fleet.rollout.spec import AbortRule

DEVICES = 12
storms = st.lists(
    st.tuples(
        st.sampled_from(["offline", "online", "lose_commit", "calm", "late"]),
        st.integers(0, DEVICES - 1),
    ),
    max_size=60,
)


def tick(fleet, rollout, state, *, committed=True):
    """One round of the manager; a commit that is lost changes neither state nor twins."""
    seen = Observation(devices=dict(fleet.views))
    new, assignments = core.step(rollout, release("v2"), state, seen, fleet.now)
    check_safety(state, new, assignments)
    if committed:
        for each in assignments:
            fleet.assign(each.device, each.deployment)
        state = new
    fleet.act()
    fleet.count()
    fleet.now += 1.0
    return state


def check_safety(before, after, assignments):
    members = set(after.exposed)
    for each in assignments:
        assert each.device in members
        if before.status is Status.ROLLING_BACK or after.status is Status.ROLLING_BACK:
            assert each.deployment is None or each.deployment.release != "v2"
    opened = [wave.phase is not Phase.WAITING for wave in after.waves]
    assert opened == sorted(opened, reverse=True)
    for earlier, wave in zip(after.waves, after.waves[1:], strict=False):
        assert wave.phase is Phase.WAITING or earlier.phase is Phase.DONE
    drawn = [device for wave in after.waves for device in wave.devices]
    assert len(drawn) == len(set(drawn))


@settings(max_examples=60 * SCALE)
@given(storms, st.sampled_from([0.97, 0.5]))
def test_safety_in_the_storm_and_convergence_in_the_calm(storm, accuracy):
    fleet = Fleet(size=DEVICES, accuracy={"v1": 0.97, "v2": accuracy})
    # Patient: in this storm absence is no reason to stop, so that the calm decides.
    rollout = make_spec(abort=(AbortRule(percent=100.0),))
    names = sorted(fleet.views)
    state = core.initial(rollout, fleet.now)
    for what, index in storm:
        if what == "offline":
            fleet.offline.add(names[index])
        elif what == "online":
            fleet.offline.discard(names[index])
        elif what == "late":
            fleet.now += 3.0
        state = tick(fleet, rollout, state, committed=what != "lose_commit")
    fleet.offline.clear()
    for _ in range(250):
        state = tick(fleet, rollout, state)
    if accuracy > 0.9:
        assert state.status is Status.SUCCEEDED, state.reason
        assert fleet.running("v2") == set(names)
    else:
        assert state.status is Status.ROLLED_BACK, state.reason
        assert fleet.running("v1") == set(names)
        assert len(state.exposed) == 5
