"""A spec that could not be obeyed is refused when it is written."""

import json

import pytest

from edgekit.contracts.errors import BadInputError
from edgekit_fleet.rollout import spec

GATE = {"metric": "accuracy_drop", "max": 0.1}


def parse(waves, **extra):
    document = {"name": "r", "release": "v2", "waves": waves, **extra}
    return spec.parse(json.dumps(document).encode())


def test_a_sane_spec_is_accepted():
    rollout = parse(
        [
            {"name": "canary", "selector": {"ring": "canary"}},
            {"name": "quarter", "percent": 25, "gates": [GATE]},
            {"name": "all", "percent": 100, "gates": [{"metric": "error_rate", "max": 0.05}]},
        ]
    )
    assert [wave.randomised for wave in rollout.waves] == [False, True, True]


@pytest.mark.parametrize(
    ("waves", "field"),
    [
        ([], "waves"),
        ([{"name": "a"}], "exactly one of selector, percent, count"),
        ([{"name": "a", "percent": 10, "count": 2}], "exactly one"),
        ([{"name": "a", "percent": 0}], "percent"),
        ([{"name": "a", "percent": 50}, {"name": "b", "percent": 50}], "above 50"),
        ([{"name": "a", "percent": 5}, {"name": "a", "percent": 50}], "same name"),
        ([{"name": "a", "selector": {}}], "selector"),
        ([{"name": "a", "selector": {"ring": "x"}, "gates": [GATE]}], "chosen by selector"),
        ([{"name": "a", "percent": 100, "gates": [GATE]}], "control cohort"),
        ([{"name": "a", "percent": 5, "gates": [GATE, GATE]}], "declared twice"),
        ([{"name": "a", "percent": 5, "gates": [{**GATE, "max": "ten"}]}], "max"),
        ([{"name": "a", "percent": 5, "gates": [{**GATE, "max": 0}]}], "max"),
        ([{"name": "a", "percent": 5, "gates": [{**GATE, "metric": "vibes"}]}], "vibes"),
        ([{"name": "a", "percent": 5, "gates": [{**GATE, "min_n": 3}]}], "min_n"),
        ([{"name": "a", "percent": 5, "soak_s": -1}], "soak_s"),
        ([{"name": "a", "percent": 5, "looks": 0}], "looks"),
    ],
)
def test_bad_waves_are_refused_by_name(waves, field):
    with pytest.raises(BadInputError, match=field):
        parse(waves)


@pytest.mark.parametrize(
    "extra",
    [
        {"abort": [{"percent": 0}]},
        {"abort": [{"percent": "a lot"}]},
        {"abort": [{"percent": 5, "min_n": 0}]},
        {"policy": {"error_rate_max": 7}},
        {"hold_s_max": 0},
        {"nonsense": 1},
        {"schema": 2},
    ],
)
def test_bad_thresholds_are_refused(extra):
    with pytest.raises(BadInputError):
        parse([{"name": "a", "percent": 100}], **extra)


def test_rollouts_of_a_group_draw_the_same_devices():
    wave = [{"name": "all", "percent": 100}]
    assert parse(wave, group=["a", "b"], draw="both").group == ("a", "b")
    with pytest.raises(BadInputError, match="draw"):
        parse(wave, group=["a", "b"])
    with pytest.raises(BadInputError, match="group"):
        parse(wave, group=["a"], draw="both")


def test_a_shadow_is_asked_for_in_the_policy_and_checked():
    wave = [{"name": "all", "percent": 100}]
    policy = {"shadow": {"share": 0.2, "agreement_min": 0.97, "mode": "replay"}}
    assert parse(wave, policy=policy).policy.shadow.agreement_min == 0.97
    with pytest.raises(BadInputError, match=r"policy\.shadow\.agreement_mn"):
        parse(wave, policy={"shadow": {"agreement_mn": 0.97}})
    policy["shadow"]["share"] = 2.0
    with pytest.raises(BadInputError, match=r"policy\.shadow\.share"):
        parse(wave, policy=policy)
