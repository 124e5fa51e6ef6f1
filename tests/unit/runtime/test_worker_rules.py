"""Frames between agent and worker, and when a worker is stuck, crashed or due again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.errors import BugError
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.contracts.states import SlotState
from edgekit_runtime import steps, supervision, wire
from edgekit_runtime.planner import Ended, Facts, plan
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.supervision import Crashes, Ending, EndKind
from edgekit_runtime.wire import Frame, FrameKind

CRASH = Ending(EndKind.CRASH, "its worker was ended by SIGSEGV")
STUCK = Ending(EndKind.STUCK, "an inference did not end within 10 s")


def _ref(digest):
    return SlotRef(digest=digest, version="1", target="t", release="r", rollout="o", wave=0)


def _record(**changes):
    values = {"state": SlotState.TRIAL, "active": _ref("new"), "fallback": _ref("old"), "tries": 2}
    return DeploymentRecord(models={"m": ModelRecord(**{**values, **changes})})


def _plan(ended, **changes):
    return plan(_record(**changes), None, Facts(targets=("t",), ends={"m": ended}))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ends = wire.Channel(ours), wire.Channel(theirs)
    yield ends
    for end in ends:
        end.close()


def _exchange(pair, frames):
    """Send without waiting while the other end reads: neither buffer may be large enough."""
    ours, theirs = pair
    for end in pair:
        end.socket.setblocking(False)
    found, left = [], list(frames)
    while len(found) < len(frames):
        if left:
            ours.send(left.pop(0))
        ours.flush()
        with contextlib.suppress(BlockingIOError):
            found += theirs.receive()
    return found


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 300_000)), max_size=6))
def test_frames_arrive_whole_whatever_the_socket_cuts(parts):
    ours, theirs = socket.socketpair()
    ends = wire.Channel(ours), wire.Channel(theirs)
    frames = [
        Frame(FrameKind.TAKE, meta, bytes([number]) * length)
        for number, (meta, length) in enumerate(parts)
    ]
    assert _exchange(ends, frames) == frames
    for end in ends:
        end.close()


def test_each_frame_arrives_with_its_own_descriptors(pair):
    readers, frames = [], []
    for number in range(40):
        reader, writer = os.pipe()
        os.write(writer, bytes([number]))
        os.close(writer)
        readers.append(reader)
        descriptors = (reader,) if number % 3 else ()
        frames.append(Frame(FrameKind.TAKE, b"", b"x" * number * 700, descriptors))
    for number, frame in enumerate(_exchange(pair, frames)):
        assert len(frame.descriptors) == (1 if number % 3 else 0)
        for descriptor in frame.descriptors:
            assert os.read(descriptor, 1) == bytes([number])
            os.close(descriptor)
    for reader in readers:
        os.close(reader)


def test_a_frame_that_is_not_ours_is_refused(pair):
    ours, theirs = pair
    ours.socket.sendall(b"\xff" * 64)
    with pytest.raises(BugError):
        theirs.receive()


def test_the_end_of_the_other_side_is_told(pair):
    pair[0].close()
    assert pair[1].receive() is None


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
