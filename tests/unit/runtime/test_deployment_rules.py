"""Machine and planner: total, deterministic, and they converge."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from edgekit.contracts.messages import (
    Deployment,
    Desired,
    Failure,
    ImageRef,
    Policy,
    SlotRef,
    VariantRef,
)
from edgekit.contracts.states import SlotState
from edgekit_runtime import steps
from edgekit_runtime.machine import TABLE, Event, next_state
from edgekit_runtime.planner import Ended, Facts, Trial, plan
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.supervision import Ending, EndKind

V1, V2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64
POLICY = Policy(confirm_inferences_min=10, confirm_s_min=5.0, error_min_n=10)


def _ref(digest: str, release: str = "r") -> SlotRef:
    return SlotRef(digest=digest, version="1", target="t", release=release, rollout="o", wave=0)


def _desired(gen: int, digest: str, *, target: str = "t", token: str = "") -> tuple[Desired, str]:
    deployment = Deployment(
        rollout="o",
        wave=1,
        release="r",
        variants={target: VariantRef(digest=digest, repository="m", size=1)},
        policy=POLICY,
        retry_token=token,
    )
    return Desired(gen=gen, deployments={"m": deployment}), "sha256:x"


def _record(**model: object) -> DeploymentRecord:
    base = ModelRecord(policy=POLICY, tries=2, test_tries=3)
    return DeploymentRecord(gen=4, models={"m": replace(base, **model)})


FACTS = Facts(targets=("t",))


def test_machine_has_an_entry_for_every_state_and_event():
    assert set(TABLE) == set(itertools.product(SlotState, Event))


def test_machine_never_leaves_empty_without_an_assignment():
    reachable = {next_state(SlotState.EMPTY, event) for event in Event} - {None}
    assert reachable == {SlotState.FETCHING, SlotState.EMPTY}


@pytest.mark.parametrize("gen", [3, 4])
def test_plan_ignores_a_generation_that_is_not_newer(gen):
    record = _record(state=SlotState.CONFIRMED, active=_ref(V1), confirmed=True)
    facts = Facts(targets=("t",), loaded={"m": V1})
    assert plan(record, _desired(gen, V2), facts) == ()


def test_plan_adopts_a_new_bundle_and_observes_last():
    found = plan(_record(), _desired(5, V2), FACTS)
    assert [type(step) for step in found] == [steps.Adopt, steps.Observe]


def test_plan_relabels_what_already_serves():
    record = _record(state=SlotState.CONFIRMED, active=_ref(V1), confirmed=True)
    relabel, _ = plan(record, _desired(5, V1), FACTS)
    assert isinstance(relabel, steps.Relabel)
    assert relabel.active.wave == 1


def test_plan_says_which_targets_it_lacks():
    (observe,) = plan(_record(), _desired(5, V1, target="other"), FACTS)
    assert isinstance(observe, steps.Observe)
    assert "other" in observe.note


def test_plan_refuses_a_quarantined_digest_until_the_token_changes():
    record = _record(failed={V2: Failure(reason="golden", at=1.0, retry_token="a")})
    (observe,) = plan(record, _desired(5, V2, token="a"), FACTS)
    assert "golden" in observe.note
    assert isinstance(plan(record, _desired(5, V2, token="b"), FACTS)[0], steps.Adopt)


def test_plan_removes_a_model_that_is_no_longer_desired():
    record = _record(state=SlotState.CONFIRMED, active=_ref(V1), confirmed=True)
    found = plan(record, (Desired(gen=5), "sha256:x"), FACTS)
    assert found[0] == steps.Remove("m")


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        (Trial(n=9, seconds=100), None),
        (Trial(n=10, seconds=4), None),
        (Trial(n=10, seconds=5), steps.Confirm),
        (Trial(n=9, errors=9, seconds=100), None),  # below error_min_n nothing is concluded
        (Trial(n=10, errors=1, seconds=100), steps.Revert),
        (Trial(n=10, nan=1, seconds=100), steps.Revert),
        (Trial(n=2, seconds=1e6), steps.MarkUnproven),
    ],
)
def test_plan_judges_a_trial_by_traffic_and_time(trial, expected):
    record = _record(state=SlotState.TRIAL, active=_ref(V2), fallback=_ref(V1))
    facts = Facts(targets=("t",), loaded={"m": V2}, trials={"m": trial})
    found = plan(record, None, facts)
    assert [type(step) for step in found] == ([expected] if expected else [])


def test_plan_reverts_when_every_try_was_spent():
    record = _record(state=SlotState.TRIAL, active=_ref(V2), fallback=_ref(V1), tries=0)
    (step,) = plan(record, None, FACTS)
    assert isinstance(step, steps.Revert)


@pytest.mark.parametrize(
    ("tries", "confirmed", "expected"),
    [
        (2, False, [steps.SpendTry("m")]),
        (0, False, [steps.Revert("m", "crash loop: every try to run it was spent, at last died")]),
        (0, True, []),
    ],
)
def test_plan_charges_the_bundle_on_trial_for_an_application_that_died(tries, confirmed, expected):
    state = SlotState.CONFIRMED if confirmed else SlotState.TRIAL
    record = _record(state=state, active=_ref(V2), tries=tries, confirmed=confirmed)
    lost = {"m": Ended(Ending(EndKind.CRASH, "died"))}
    facts = Facts(targets=("t",), loaded={"m": V2}, lost=lost)
    assert list(plan(record, None, facts)) == expected


def test_plan_spends_no_try_after_an_orderly_stop_nor_for_what_is_proven():
    trial = _record(state=SlotState.TRIAL, active=_ref(V2))
    proven = _record(state=SlotState.CONFIRMED, active=_ref(V2), confirmed=True, tries=0)
    assert plan(trial, None, FACTS) == (steps.Load("m", spend_try=True),)
    clean = Facts(targets=("t",), clean_start=True)
    assert plan(trial, None, clean) == (steps.Load("m", spend_try=False),)
    assert plan(proven, None, FACTS) == (steps.Load("m", spend_try=False),)


def test_plan_refuses_a_candidate_whose_self_test_kills_the_process():
    record = _record(state=SlotState.SELF_TEST, candidate=_ref(V2), test_tries=0)
    (step,) = plan(record, None, FACTS)
    assert isinstance(step, steps.Refuse)


def test_plan_reinstates_the_proven_fallback_without_a_trial():
    record = _record(
        state=SlotState.SELF_TEST, active=_ref(V2), fallback=_ref(V1), candidate=_ref(V1)
    )
    facts = Facts(targets=("t",), loaded={"m": V2}, ready=frozenset({V1}))
    assert plan(record, None, facts) == (steps.Activate("m", proven=True),)


def test_plan_does_nothing_while_a_slow_step_runs():
    for state in SlotState:
        record = _record(state=state, candidate=_ref(V2))
        assert plan(record, None, Facts(targets=("t",), busy=True)) == ()


def test_plan_is_a_function_of_its_arguments():
    record = _record(state=SlotState.TRIAL, active=_ref(V2), fallback=_ref(V1))
    arguments = (record, _desired(9, V1), FACTS)
    assert plan(*arguments) == plan(*arguments)


# --- slots that are images ----------------------------------------------------------------

IMAGE = ImageRef(digest="sha256:" + "9" * 64, repository="m", size=1)
ENGINE = Facts(targets=("t",), containers=True)


def _desired_image(image: ImageRef = IMAGE, token: str = "") -> tuple[Desired, str]:
    desired, digest = _desired(5, V1, token=token)
    deployment = desired.deployments["m"]
    variant = VariantRef(digest=V1, repository="m", size=1, image=image)
    changed = replace(deployment, variants={"t": variant})
    return replace(desired, deployments={"m": changed}), digest


def _image_ref(image: ImageRef = IMAGE) -> SlotRef:
    return replace(_ref(V1), image=image)


def test_an_image_is_taken_where_containers_run_and_its_bundle_elsewhere():
    for facts, image in ((ENGINE, IMAGE), (FACTS, None)):
        adopt, _ = plan(_record(), _desired_image(), facts)
        assert isinstance(adopt, steps.Adopt)
        assert (adopt.candidate.digest, adopt.candidate.image) == (V1, image)


def test_a_failure_of_one_image_says_nothing_of_another():
    failure = Failure(reason="golden", at=1.0, content=IMAGE.digest)
    record = _record(failed={V1: failure})
    (observe,) = plan(record, _desired_image(), ENGINE)
    assert "failed here" in observe.note
    other = replace(IMAGE, digest="sha256:" + "8" * 64)
    assert isinstance(plan(record, _desired_image(other), ENGINE)[0], steps.Adopt)
    assert isinstance(plan(record, _desired_image(), FACTS)[0], steps.Adopt)  # the bundle itself


def test_the_same_bundle_moves_between_image_and_process():
    record = _record(state=SlotState.CONFIRMED, active=_image_ref(), confirmed=True)
    facts = replace(ENGINE, loaded={"m": IMAGE.digest})
    assert isinstance(plan(record, _desired_image(), facts)[0], steps.Relabel)
    assert isinstance(plan(record, _desired(5, V1), facts)[0], steps.Adopt)


@pytest.mark.parametrize("confirmed", [True, False])
def test_an_engine_that_went_away_costs_neither_try_nor_slot(confirmed):
    state = SlotState.CONFIRMED if confirmed else SlotState.TRIAL
    record = _record(
        state=state, active=_image_ref(), fallback=_ref(V2), confirmed=confirmed, tries=0
    )
    ended = Ended(Ending(EndKind.OUTSIDE, "the engine went away"), count=99)
    facts = replace(ENGINE, ends={"m": ended})
    assert plan(record, None, facts) == (steps.Load("m", spend_try=False),)
    waiting = replace(ENGINE, ends={"m": replace(ended, waits=True)})
    assert plan(record, None, waiting) == ()


def test_tidying_waits_until_nothing_else_is_to_be_done():
    untidy = replace(ENGINE, untidy=True)
    preparing = _record(state=SlotState.FETCHING, candidate=_image_ref())
    assert plan(preparing, None, untidy) == (steps.Fetch("m"),)
    assert plan(_record(), None, untidy) == (steps.Tidy(),)
    assert plan(_record(), None, replace(untidy, busy=True)) == ()
    assert plan(preparing, None, replace(untidy, waits=frozenset("m"))) == (steps.Tidy(),)
