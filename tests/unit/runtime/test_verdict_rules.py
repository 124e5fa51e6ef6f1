"""Rules for going back: rates, latency unless throttled, error burn; what cannot be is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import Policy, SlotRef, check_policy
from edgekit.contracts.states import SlotState
from edgekit.stats import histogram
from edgekit_runtime import steps, verdicts
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.kinds import Kind
from edgekit_runtime.monitors.figures import BurnCounter, TrialCounter, latency_before
from edgekit_runtime.planner import Ended, Facts, plan
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.region import Labels, Region
from edgekit_runtime.supervision import Ending, EndKind
from edgekit_runtime.verdicts import Lately, Trial

POLICY = Policy(latency_p99_ms_max=5.0, latency_min_n=10, burn_rate_max=0.1, error_min_n=10)

REF = SlotRef(
    digest="sha256:" + "1" * 64, version="1", target="t", release="r", rollout="o", wave=0
)


def _latency(**ms: int) -> tuple[int, ...]:
    counts = [0] * histogram.LATENCY_BUCKETS
    for name, number in ms.items():
        counts[histogram.bucket(float(name.removeprefix("ms")) * 1e3)] += number
    return tuple(counts)


def test_as_few_as_confirm_a_bundle_are_judged_too():
    few = Policy(confirm_inferences_min=5, error_min_n=100)
    assert verdicts.unfit(few, Trial(n=4, errors=4)) == ""
    assert verdicts.unfit(few, Trial(n=5, errors=1)).startswith("error rate 0.2")
    assert verdicts.unfit(few, Trial(n=5, nan=1)).startswith("NaN rate")
    assert verdicts.unfit(Policy(error_min_n=100), Trial(n=99, errors=99)) == ""


@pytest.mark.parametrize(
    ("policy", "trial", "judged"),
    [
        (Policy(), Trial(), True),  # no limit is declared
        (POLICY, Trial(latency=_latency(ms1=9)), False),
        (POLICY, Trial(latency=_latency(ms1=9), throttled_n=9999), False),
        (POLICY, Trial(latency=_latency(ms1=10)), True),
        (Policy(latency_ratio_max=2.0, latency_min_n=10), Trial(), True),  # nothing ran before it
        (
            Policy(latency_ratio_max=2.0, latency_min_n=10),
            Trial(before=_latency(ms1=10), latency=_latency(ms1=9)),
            False,
        ),
    ],
)
def test_a_limit_that_was_not_judged_keeps_a_bundle_from_being_confirmed(policy, trial, judged):
    assert verdicts.measured(policy, trial) is judged
    policy = msgspec.structs.replace(policy, confirm_inferences_min=1, unproven_after_s=1e5)
    model = ModelRecord(state=SlotState.TRIAL, active=REF, policy=policy, tries=2)
    record = DeploymentRecord(gen=1, models={"m": model})
    for seconds, wanted in ((1e4, ()), (1e6, (steps.MarkUnproven("m"),))):
        trials = {"m": msgspec.structs.replace(trial, n=5000, seconds=seconds)}
        facts = Facts(targets=("t",), loaded={"m": REF.content}, trials=trials)
        assert plan(record, None, facts) == ((steps.Confirm("m"),) if judged else wanted)


@pytest.mark.parametrize(
    ("trial", "why"),
    [
        (Trial(latency=_latency(ms20=9)), ""),  # too few
        (Trial(latency=_latency(ms1=1000)), ""),
        (Trial(latency=_latency(ms1=985, ms20=15)), "p99 at least"),
        (Trial(latency=_latency(ms1=995, ms20=5)), ""),
        (Trial(latency=_latency(ms4=50, ms5=50)), ""),  # the bucket of 5 ms begins below 5
        (Trial(latency=_latency(ms20=50), throttling_known=False), "throttled is unknown here"),
        (Trial(latency=(), throttled_n=9999), ""),
    ],
)
def test_latency_is_judged_where_it_is_certain(trial, why):
    assert why in verdicts.unfit(POLICY, trial)
    assert bool(verdicts.unfit(POLICY, trial)) == bool(why)


def test_latency_is_compared_with_the_bundle_before():
    policy = Policy(latency_ratio_max=2.0, latency_min_n=10)
    slow, fast = _latency(ms9=100), _latency(ms1=100)
    assert "of the bundle before" in verdicts.unfit(policy, Trial(latency=slow, before=fast))
    assert not verdicts.unfit(policy, Trial(latency=fast, before=slow))
    assert not verdicts.unfit(policy, Trial(latency=slow, before=_latency(ms1=9)))  # too few
    assert not verdicts.unfit(policy, Trial(latency=slow))


@given(st.lists(st.floats(0.5, 6e7), min_size=1, max_size=200))
def test_the_quantile_lies_between_the_edges(latencies_us):
    counts = [0] * histogram.LATENCY_BUCKETS
    for latency_us in latencies_us:
        counts[histogram.bucket(latency_us)] += 1
    low, high = verdicts.quantile_ms(counts, 0.99)
    exact = sorted(latencies_us)[max(1, -(-len(latencies_us) * 99 // 100)) - 1] / 1e3
    assert low * (1 - 1e-9) <= exact <= high * (1 + 1e-9)


def _plan(policy=POLICY, *, lately=None, ended=None, **model):
    ref = steps.SlotRef(digest="d2", version="2", target="t", release="r", rollout="o", wave=0)
    before = msgspec.structs.replace(ref, digest="d1")
    base = ModelRecord(
        state=SlotState.CONFIRMED, active=ref, fallback=before, confirmed=True, policy=policy
    )
    record = DeploymentRecord(models={"m": msgspec.structs.replace(base, **model)})
    facts = Facts(
        targets=("t",),
        loaded={} if ended else {"m": "d2"},
        lately={"m": lately} if lately else {},
        ends={"m": ended} if ended else {},
    )
    return plan(record, None, facts)


def test_a_confirmed_bundle_that_burns_gives_way_to_its_fallback():
    burning = Lately(n=100, errors=6, nan=5, seconds=300)
    (step,) = _plan(lately=burning)
    assert isinstance(step, steps.Revert)
    assert step.reason == (
        "error burn: 11 of 100 inferences failed or were NaN within 300 s, allowed 0.1"
    )
    assert _plan(lately=burning, fallback=None) == ()  # it is the best there is
    assert _plan(lately=Lately(n=100, errors=5, nan=5)) == ()
    assert _plan(lately=Lately(n=9, errors=9)) == ()
    assert _plan(Policy(error_min_n=10), lately=burning) == ()  # its policy does not ask


def test_memory_ends_a_trial_at_once_and_a_confirmed_bundle_at_the_third_time():
    ending = Ending(EndKind.MEMORY, "its worker used 9 bytes of memory, allowed 8")
    (step,) = _plan(ended=Ended(ending), confirmed=False, state=SlotState.TRIAL, tries=2)
    assert step == steps.Revert("m", ending.reason)
    (step,) = _plan(ended=Ended(ending, count=2))
    assert isinstance(step, steps.Load)
    (step,) = _plan(ended=Ended(ending, count=3))
    assert isinstance(step, steps.Revert)
    assert ending.reason in step.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"latency_p99_ms_max": 0.0},
        {"latency_p99_ms_max": float("nan")},
        {"latency_p99_ms_max": 1e9},
        {"latency_ratio_max": 0.9},
        {"latency_ratio_max": float("inf")},
        {"latency_min_n": 0},
        {"burn_rate_max": 1.5},
        {"burn_rate_max": -0.1},
        {"burn_window_s": float("nan")},
        {"burn_rate_max": 0.1, "burn_window_s": 0.5},
    ],
)
def test_thresholds_that_cannot_be_obeyed_are_refused_when_written(changes):
    with pytest.raises(BadInputError, match=f"policy.{list(changes)[-1]}"):
        check_policy(Policy(**changes))
    assert check_policy(POLICY) is POLICY


# --- what is counted ----------------------------------------------------------------------


@pytest.fixture
def region(tmp_path):
    labels = Labels(model="m", digest="d", version="1", slot="a", release="r", rollout="o", wave=0)
    return Region.create(PosixDisk(), tmp_path / "1.rgn", labels)


def _answer(region, count, *, latency_us=1000.0, flags=0, kind=Kind.PREDICTION):
    for _ in range(count):
        region.append(kind, 0, 1.0, latency_us, flags=flags)


def test_latencies_do_not_count_while_throttled_nor_in_the_look_before_it_ends(region):
    states = iter([False, True, False, False, None])
    trial = TrialCounter(region, 0.0, throttled=lambda: next(states))
    found = []
    for _ in range(5):
        _answer(region, 10)
        found.append(trial.read(1.0))
    assert [sum(each.latency) for each in found] == [10, 10, 10, 20, 30]
    assert [each.throttled_n for each in found] == [0, 10, 20, 20, 20]
    assert found[-1].n == 50
    assert [each.throttling_known for each in found] == [True, True, True, True, False]


def test_latencies_of_the_bundle_before_come_from_its_own_ring(region):
    _answer(region, 3)
    _answer(region, 1, kind=Kind.ERROR)
    assert sum(latency_before([region], "d")) == 3
    assert latency_before([region], "other") == ()


def test_a_burn_is_forgotten_after_its_window(region):
    _answer(region, 4)
    burn = BurnCounter(region)
    assert burn.read(0.0, 10.0).n == 0  # what lies before is not its own
    _answer(region, 4, kind=Kind.ERROR)
    _answer(region, 2, flags=8)
    assert burn.read(1.0, 10.0) == Lately(n=6, errors=4, nan=2, seconds=10.0)
    _answer(region, 5)
    assert burn.read(9.0, 10.0) == Lately(n=11, errors=4, nan=2, seconds=10.0)
    assert burn.read(12.0, 10.0) == Lately(n=5, seconds=10.0)
