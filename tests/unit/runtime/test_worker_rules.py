"""Frames between agent and worker, and when a worker is stuck, crashed or due again."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.errors import BugError
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.contracts.states import SlotState
from edgekit_runtime import steps, supervision, wire
from edgekit_runtime.planner import Ended, Facts, plan
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.region import Kind
from edgekit_runtime.serving import Observation
from edgekit_runtime.supervision import Crashes, Ending, EndKind
from edgekit_runtime.wire import FrameKind

CRASH = Ending(EndKind.CRASH, "its worker was ended by SIGSEGV")
STUCK = Ending(EndKind.STUCK, "an inference did not end within 10 s")


def _ref(digest):
    return SlotRef(digest=digest, version="1", target="t", release="r", rollout="o", wave=0)


def _record(**changes):
    values = {"state": SlotState.TRIAL, "active": _ref("new"), "fallback": _ref("old"), "tries": 2}
    return DeploymentRecord(models={"m": ModelRecord(**{**values, **changes})})


def _plan(ended, **changes):
    return plan(_record(**changes), None, Facts(targets=("t",), ends={"m": ended}))


def _feed(reader, data):
    found = []
    while data:
        room = reader.room()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        found += reader.received(count)
        data = data[count:]
    return found


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 200_000)), max_size=8),
    st.lists(st.sampled_from([1, 7, 97, 4096, 70_000]), min_size=1),
)
def test_frames_survive_any_cut_of_the_stream(parts, cuts):
    bodies = [bytes([number]) * length for number, (_, length) in enumerate(parts)]
    stream = b"".join(
        wire.head(FrameKind.INFER, seq, meta, len(body)) + body
        for seq, ((meta, _), body) in enumerate(zip(parts, bodies, strict=True))
    )
    reader, found, turn, start = wire.Reader(), [], 0, 0
    while start < len(stream):
        size = max(cuts[turn % len(cuts)], len(stream) // 2000)
        found += _feed(reader, stream[start : start + size])
        start, turn = start + size, turn + 1
    wanted = [(n, meta, bodies[n]) for n, (meta, _) in enumerate(parts)]
    assert [(f.seq, f.meta, f.body) for f in found] == wanted


def test_a_frame_that_is_not_ours_is_refused():
    with pytest.raises(BugError):
        _feed(wire.Reader(), b"\xff" * 64)


def test_an_answer_carries_what_is_to_be_counted():
    seen = Observation(Kind.PREDICTION, 2**63, 12.5, 7, 0.25, 3)
    meta = wire.pack_answer(200, -1, seen)
    found = wire.unpack_answer(wire.Frame(FrameKind.ANSWER, 1, meta, b"x"))
    assert (found.status, found.json_length, found.body, found.seen) == (200, -1, b"x", seen)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-signal.SIGSEGV, EndKind.CRASH, "SIGSEGV"),
        (1, EndKind.CRASH, "exit code 1"),
        (-200, EndKind.CRASH, "signal 200"),
        (supervision.EXIT_MEMORY, EndKind.MEMORY, "memory"),
    ],
)
def test_an_exit_code_is_told_in_words(code, kind, words):
    ending = supervision.describe_exit(code)
    assert ending.kind is kind
    assert words in ending.reason


def test_stuck_is_ten_times_the_p99_and_never_less_than_the_cold_start():
    assert supervision.stuck_limit_s(10.0, []) == 10.0
    assert supervision.stuck_limit_s(10.0, [0.01] * 200) == 10.0
    assert supervision.stuck_limit_s(10.0, [3.0] * 200) == 30.0


def test_restarts_are_immediate_once_and_then_later_and_later():
    crashes, pauses = Crashes(), []
    for _ in range(10):
        crashes.add(CRASH, 100.0)
        pauses.append(crashes.start_at - 100.0)
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses[-1] == supervision.RESTART_S_MAX
    assert crashes.count(100.0) == 10
    assert crashes.count(100.1 + supervision.CRASH_WINDOW_S) == 0


def test_a_crash_on_trial_spends_a_try_even_after_a_clean_start():
    facts = Facts(targets=("t",), ends={"m": Ended(CRASH)}, clean_start=True)
    assert plan(_record(), None, facts) == (steps.Load("m", spend_try=True),)


def test_the_last_try_names_the_signal():
    (step,) = _plan(Ended(CRASH, 3), tries=0)
    assert isinstance(step, steps.Revert)
    assert "SIGSEGV" in step.reason


def test_a_hang_on_trial_is_reverted_at_once():
    assert _plan(Ended(STUCK)) == (steps.Revert("m", STUCK.reason),)


@pytest.mark.parametrize(("count", "fallback"), [(2, _ref("old")), (3, None), (9, None)])
def test_a_confirmed_bundle_is_started_again_when_due(count, fallback):
    done = {"state": SlotState.CONFIRMED, "confirmed": True, "fallback": fallback}
    assert _plan(Ended(CRASH, count, waits=True), **done) == ()
    assert _plan(Ended(CRASH, count), **done) == (steps.Load("m", spend_try=False),)


def test_a_confirmed_bundle_that_keeps_ending_gives_way_to_its_fallback():
    (step,) = _plan(Ended(CRASH, 3), state=SlotState.CONFIRMED, confirmed=True)
    assert isinstance(step, steps.Revert)


@pytest.mark.parametrize("changes", [{"stuck_s_min": -1.0}, {"worker_bytes_max": -1}])
def test_limits_that_cannot_be_obeyed_are_refused(changes):
    from edgekit.contracts.errors import BadInputError
    from edgekit.contracts.messages import check_policy

    with pytest.raises(BadInputError):
        check_policy(Policy(**changes))
