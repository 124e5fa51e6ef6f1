"""The rollout core against a simulated fleet: waves, gates, stops, crashes."""

import itertools

import msgspec
import pytest
from fleetkit.world import Fleet, make_spec, release

from edgekit.contracts.messages import ModelReport
from edgekit.contracts.states import SlotState
from edgekit.contracts.verdict import Outcome
from edgekit_fleet.rollout import cohorts, core, machine, spec
from edgekit_fleet.rollout.model import (
    DeviceView,
    Observation,
    Phase,
    Status,
)


def run(fleet, rollout, *, ticks=200, abort=None, state=None):
    state = state or core.initial(rollout, fleet.now)
    for _ in range(ticks):
        if state.status in core.TERMINAL:
            break
        seen = Observation(devices=dict(fleet.views), abort_requested=abort)
        state, assignments = core.step(rollout, release("v2"), state, seen, fleet.now)
        for assignment in assignments:
            fleet.assign(assignment.device, assignment.deployment)
        fleet.act()
        fleet.count()
        fleet.now += 1.0
    return state


def test_a_good_release_reaches_every_device_wave_by_wave():
    fleet = Fleet()
    state = run(fleet, make_spec())
    assert state.status is Status.SUCCEEDED
    assert fleet.running("v2") == set(fleet.views)
    assert [len(wave.devices) for wave in state.waves] == [5, 7]
    assert len(state.waves[0].control) == 7
    assert all(wave.phase is Phase.DONE and wave.finished for wave in state.waves)
    assert state.waves[0].verdicts[0].outcome is Outcome.PASS


def test_a_bad_release_is_stopped_in_its_first_wave_and_goes_back():
    fleet = Fleet(accuracy={"v1": 0.97, "v2": 0.5})
    state = run(fleet, make_spec())
    assert state.status is Status.ROLLED_BACK
    assert "accuracy_drop" in state.reason
    assert len(state.exposed) == 5
    assert fleet.running("v1") == set(fleet.views)
    verdict = state.waves[0].verdicts[0]
    assert verdict.n_devices == 12
    assert verdict.low > 0.1


def test_silence_is_not_a_pass_it_holds():
    fleet = Fleet()
    fleet.count = lambda: None
    state = run(fleet, make_spec(), ticks=60)
    assert state.status is Status.HOLDING
    assert len(fleet.running("v2")) == 5
    assert "no data" in state.reason


def test_holding_ends_when_evidence_arrives_and_is_bounded():
    fleet = Fleet()
    count, fleet.count = fleet.count, lambda: None
    rollout = make_spec()
    state = run(fleet, rollout, ticks=30)
    fleet.count = count
    assert run(fleet, rollout, state=state).status is Status.SUCCEEDED

    silent = Fleet()
    silent.count = lambda: None
    state = run(silent, make_spec(hold_s_max=5.0))
    assert state.status is Status.ROLLED_BACK
    assert "without a clear verdict" in state.reason


def test_devices_that_refuse_meet_the_abort_rule():
    fleet = Fleet()
    fleet.refusing = set(fleet.views)
    state = run(fleet, make_spec())
    assert state.status is Status.ROLLED_BACK
    assert "golden outputs differ" in state.reason
    assert not fleet.running("v2")


def test_an_offline_device_is_not_a_success_and_is_waited_for_when_going_back():
    fleet = Fleet()
    rollout = make_spec()
    members, _ = cohorts.draw(rollout, rollout.waves[0], fleet.views, (), ["x86-64-v3"])
    fleet.offline = {members[0]}
    state = run(fleet, rollout, ticks=30)
    assert state.waves[0].phase is Phase.INSTALLING
    state = run(fleet, rollout, ticks=60, state=state)
    assert state.status is Status.ROLLING_BACK  # timed out: 20 % of the wave
    assert "timed_out" in state.reason or "any" in state.reason
    fleet.offline = set()
    assert run(fleet, rollout, state=state).status is Status.ROLLED_BACK


def test_operator_abort_sends_devices_back():
    fleet = Fleet()
    rollout = make_spec()
    state = run(fleet, rollout, ticks=5)
    state = run(fleet, rollout, state=state, abort="wrong firmware")
    assert state.status is Status.ROLLED_BACK
    assert "wrong firmware" in state.reason
    assert fleet.running("v1") == set(fleet.views)


def test_a_selector_wave_takes_exactly_the_matching_devices():
    fleet = Fleet(labels={2: {"ring": "canary"}, 7: {"ring": "canary"}})
    waves = (
        spec.Wave(name="canary", selector={"ring": "canary"}, soak_s=3.0),
        spec.Wave(name="all", percent=100.0, soak_s=3.0),
    )
    state = run(fleet, make_spec(waves=waves))
    assert set(state.waves[0].devices) == {"d02", "d07"}
    assert state.waves[0].control == ()
    assert state.status is Status.SUCCEEDED


def test_a_wave_without_devices_proves_nothing_and_stops():
    waves = (spec.Wave(name="canary", selector={"ring": "none"}, soak_s=3.0),)
    state = run(Fleet(), make_spec(waves=waves))
    assert state.status is Status.ROLLED_BACK
    assert "no devices" in state.reason


@pytest.mark.parametrize("lost", range(12))
def test_a_manager_killed_after_any_step_goes_on_from_its_database(lost):
    """The commit of step ``lost`` never happened: neither the state nor the assignments."""
    fleet, rollout = Fleet(), make_spec()
    state = core.initial(rollout, fleet.now)
    for tick in range(120):
        seen = Observation(devices=dict(fleet.views))
        new, assignments = core.step(rollout, release("v2"), state, seen, fleet.now)
        if tick != lost:
            state = codec_round_trip(new)
            for assignment in assignments:
                fleet.assign(assignment.device, assignment.deployment)
        fleet.act()
        fleet.count()
        fleet.now += 1.0
    assert state.status is Status.SUCCEEDED
    assert fleet.running("v2") == set(fleet.views)


def codec_round_trip(state):
    return msgspec.json.decode(msgspec.json.encode(state), type=type(state))


def test_step_is_pure_and_settles():
    fleet, rollout = Fleet(), make_spec()
    seen = Observation(devices=dict(fleet.views))
    state = core.initial(rollout, fleet.now)
    assert core.step(rollout, release("v2"), state, seen, 5.0) == core.step(
        rollout, release("v2"), state, seen, 5.0
    )
    final = run(fleet, rollout)
    assert core.step(rollout, release("v2"), final, seen, fleet.now) == (final, ())


def test_the_table_lists_every_pair():
    pairs = set(itertools.product(Status, machine.Event))
    assert set(machine.TABLE) == pairs
    for status in core.TERMINAL:
        assert all(machine.next_status(status, event) is status for event in machine.Event)


def test_cohorts_are_stable_stratified_and_independent_between_rollouts():
    views = {
        f"d{i}": DeviceView(device=f"d{i}", targets=("a",) if i % 4 else ("b", "a"))
        for i in range(40)
    }
    rollout = make_spec()
    wave = spec.Wave(name="w", percent=20.0)
    chosen, control = cohorts.draw(rollout, wave, views, (), ["a", "b"])
    assert cohorts.draw(rollout, wave, dict(reversed(views.items())), (), ["a", "b"])[0] == chosen
    assert len(chosen) == 8
    assert sum(views[d].targets[0] == "b" for d in chosen) == 2  # a quarter, as in the fleet
    assert set(chosen) | set(control) == set(views)
    other = cohorts.draw(msgspec.structs.replace(rollout, name="other"), wave, views, (), ["a"])
    assert set(other[0]) != set(chosen)


def test_devices_without_a_variant_are_listed_not_exposed():
    fleet = Fleet()
    fleet.views["pi"] = DeviceView(device="pi", targets=("rpi5",), online=True)
    fleet.views["pi"] = msgspec.structs.replace(
        fleet.views["pi"], report=ModelReport(state=SlotState.EMPTY)
    )
    state = run(fleet, make_spec())
    assert state.ineligible == ("pi",)
    assert "pi" not in state.exposed
