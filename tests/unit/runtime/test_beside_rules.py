"""Candidates beside what serves: rulings, suspension, what the planner makes of them, samples."""

from __future__ import annotations

import os
import socket

import msgspec
import numpy as np
import pytest

from edgekit.contracts.messages import Policy, SlotRef
from edgekit.contracts.shadow import Shadow, ShadowMode, Split
from edgekit.contracts.states import SlotState
from edgekit_runtime import beside, samples, steps
from edgekit_runtime.beside import Beside, Readings, Ruling
from edgekit_runtime.loop import Loop
from edgekit_runtime.planner import Facts, Standing, plan
from edgekit_runtime.record import BesideRecord, DeploymentRecord, ModelRecord
from edgekit_runtime.samples import (
    DISAGREEMENTS_MAX,
    Buffer,
    Disagreements,
    Sample,
    Sampler,
    Source,
)
from edgekit_runtime.supervision import Ending, EndKind

SHADOW = Shadow(inferences_min=100, seconds_min=60.0, unproven_after_s=600.0)
POLICY = Policy(shadow=SHADOW, error_min_n=10)
SPLIT = Policy(split=Split(inferences_min=100, seconds_min=60.0), error_min_n=10)
V1, V2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.mark.parametrize(
    ("seen", "ruling"),
    [
        (Beside(), Ruling.WAIT),
        (Beside(n=99, agreed=99, seconds=100), Ruling.WAIT),  # too little traffic
        (Beside(n=100, agreed=100, seconds=59), Ruling.WAIT),  # too little time
        (Beside(n=100, agreed=90, seconds=60), Ruling.PASS),
        (Beside(n=100, agreed=89, seconds=60), Ruling.REFUSE),
        (Beside(n=20, agreed=10), Ruling.WAIT),  # may still become 90 of 100
        (Beside(n=20, agreed=9), Ruling.REFUSE),  # cannot
        (Beside(n=1000, agreed=899, seconds=1), Ruling.REFUSE),
        (Beside(n=50, agreed=50, errors=1), Ruling.REFUSE),
        (Beside(n=50, agreed=50, nan=1), Ruling.REFUSE),
        (Beside(n=9, agreed=9, errors=1), Ruling.WAIT),
        (Beside(n=99, agreed=99, seconds=600), Ruling.UNPROVEN),
    ],
)
def test_a_candidate_in_the_shadow_passes_by_traffic_time_and_agreement(seen, ruling):
    assert beside.judge(POLICY, 0.9, seen)[0] is ruling


def test_a_candidate_in_a_split_is_judged_by_its_own_answers():
    assert beside.judge(SPLIT, None, Beside(n=100, seconds=60))[0] is Ruling.PASS
    ruling, reason = beside.judge(SPLIT, None, Beside(n=100, errors=9, seconds=60))
    assert ruling is Ruling.REFUSE
    assert "in the split: error rate" in reason


@pytest.mark.parametrize(
    ("readings", "before", "now", "why"),
    [
        (Readings(), None, None, ""),
        (Readings(throttled=False, memory_available=1 << 30), 0.001, 0.002, ""),
        (Readings(throttled=True), None, None, "hot"),
        (Readings(memory_available=1 << 20), None, None, "low on memory"),
        (Readings(), 0.001, 0.0021, "late"),
        (Readings(), None, 10.0, ""),  # nothing is known of before
    ],
)
def test_sampling_stops_when_hot_low_on_memory_or_late(readings, before, now, why):
    found = beside.suspended(SHADOW, readings, before, now)
    assert found.startswith(why)
    assert bool(found) is bool(why)


def _ref(digest: str) -> SlotRef:
    return SlotRef(digest=digest, version="1", target="t", release="r", rollout="o", wave=0)


def _planned(state: SlotState, policy: Policy = POLICY, **facts):
    model = ModelRecord(
        state=state,
        active=_ref(V1),
        candidate=_ref(V2),
        confirmed=True,
        policy=policy,
        test_tries=2,
        beside=BesideRecord(agreement_min=0.9) if state is SlotState.SHADOW else None,
    )
    known = {"targets": ("t",), "loaded": {"m": V1}} | facts
    return plan(DeploymentRecord(gen=1, models={"m": model}), None, Facts(**known))


ENOUGH = {"m": Standing(Beside(n=100, agreed=100, seconds=60))}
TOO_FEW = {"m": Standing(Beside(n=1, agreed=1))}
READY = frozenset({V2})
REPLAY = msgspec.structs.replace(
    POLICY, shadow=msgspec.structs.replace(SHADOW, mode=ShadowMode.REPLAY)
)


def test_the_planner_takes_a_candidate_from_its_test_through_its_shadow_to_its_trial():
    assert _planned(SlotState.SELF_TEST) == (steps.SelfTest("m"),)
    assert _planned(SlotState.SELF_TEST, ready=READY) == (steps.StandBeside("m"),)
    assert _planned(SlotState.SHADOW, ready=READY, beside=TOO_FEW) == ()
    activate = (steps.Activate("m", proven=False),)
    assert _planned(SlotState.SHADOW, ready=READY, beside=ENOUGH) == activate
    assert _planned(SlotState.SELF_TEST, Policy(), ready=READY) == activate
    assert _planned(SlotState.SHADOW) == (steps.SelfTest("m"),)  # after a start
    assert _planned(SlotState.SHADOW, ready=READY) == (steps.StandBeside("m"),)


def test_a_candidate_that_is_replayed_is_in_memory_only_then():
    assert _planned(SlotState.SHADOW, REPLAY) == (steps.StandBeside("m"),)
    assert _planned(SlotState.SHADOW, REPLAY, beside=TOO_FEW) == ()
    collected = {"m": Standing(Beside(n=1, agreed=1), collected=True)}
    assert _planned(SlotState.SHADOW, REPLAY, beside=collected) == (steps.Replay("m"),)
    assert _planned(SlotState.SHADOW, REPLAY, beside=ENOUGH) == (steps.SelfTest("m"),)


def test_a_refusal_waits_for_nobody():
    bad = {"m": Standing(Beside(n=100, agreed=1, seconds=60))}
    (step,) = _planned(SlotState.SHADOW, ready=READY, beside=bad, busy=True)
    assert isinstance(step, steps.Refuse)
    fallen = {V2: Ending(EndKind.CRASH, "its worker was ended by SIGSEGV")}
    (step,) = _planned(SlotState.SHADOW, ready=READY, beside=TOO_FEW, fallen=fallen, busy=True)
    assert step == steps.Refuse("m", "beside what serves: its worker was ended by SIGSEGV")
    away = {V2: Ending(EndKind.OUTSIDE, "the engine went away")}
    assert _planned(SlotState.SHADOW, beside=TOO_FEW, fallen=away, busy=True) == ()


def _sample(size: int = 4, request: int = 7) -> Sample:
    x = np.arange(size, dtype=np.float32).reshape(1, size)
    return Sample(request, {"x": x}, {"y": x.astype(np.int64), "z": np.float64(3.0).reshape(())})


def _equal(found: Sample, sample: Sample) -> bool:
    pairs = ((found.inputs, sample.inputs), (found.outputs, sample.outputs))
    return found.request == sample.request and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in pairs
    )


def test_samples_cross_a_socket_in_pieces_and_what_finds_no_room_is_counted():
    loop, (near, far) = Loop(), socket.socketpair()
    sampler, source = Sampler(loop, Disagreements()), Source(far.detach())
    sampler.begin(near.detach(), 0)
    sampler.offer(1, {}, {})  # its share is nothing yet
    sampler.rate(1.0)
    big = _sample(200_000)  # more than a socket holds: the rest follows when there is room
    sampler.offer(big.request, big.inputs, big.outputs)
    for _ in range(3):
        sampler.offer(8, big.inputs, big.outputs)  # the first is not out yet
    while not source.ready:
        assert source.receive()
        loop.turn(0)
    assert _equal(source.next(), big)
    sampler.offer(9, _sample().inputs, _sample().outputs)
    while not source.ready:
        assert source.receive()
    found = source.next()
    assert (found.request, found.dropped) == (9, 3)
    source.close()
    loop.turn(0.1)  # it notices, and nothing is raised
    sampler.offer(10, big.inputs, big.outputs)
    loop.close()


def test_what_a_candidate_would_have_answered_otherwise_comes_back():
    loop, (near, far) = Loop(), socket.socketpair()
    told = Disagreements()
    sampler, source = Sampler(loop, told), Source(far.detach())
    sampler.begin(near.detach(), 0)
    for request in (7, 2**64 - 1):
        source.disagree(request)
    loop.turn(1)
    assert 7 in told
    assert 2**64 - 1 in told
    assert 8 not in told
    source.close()
    loop.turn(1)
    assert 7 in told  # it is gone, what it said still holds
    again, other = socket.socketpair()
    sampler.begin(again.detach(), 0)
    assert 7 not in told  # that was another candidate
    sampler.end()
    other.close()
    loop.close()


def test_disagreements_come_in_any_pieces_and_the_newest_are_kept():
    told = Disagreements()
    said = b"".join(number.to_bytes(8, "little") for number in range(1, DISAGREEMENTS_MAX + 3))
    for at in range(0, len(said), 1001):
        told.hear(said[at : at + 1001])
    assert [number in told for number in (1, 2, 3)] == [False, False, True]
    assert DISAGREEMENTS_MAX + 2 in told


def test_a_candidate_waits_for_nobody_who_does_not_listen():
    near, far = socket.socketpair()
    source = Source(far.detach())
    for request in range(100_000):  # more than the socket holds
        source.disagree(request)
    near.close()
    source.disagree(1)
    source.close()


def test_a_sampler_whose_candidate_is_gone_does_not_spin():
    loop, (near, far) = Loop(), socket.socketpair()
    sampler = Sampler(loop, Disagreements())
    descriptor = near.detach()
    sampler.begin(descriptor, 0)
    far.close()
    loop.turn(1)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
    loop.close()


def test_collected_samples_stay_within_their_bytes_and_are_read_back():
    buffer = Buffer.create(65536)
    data = samples.encode(_sample(1000))
    for _ in range(100):
        buffer.add(data)
    assert 1 <= buffer.samples < 65536 / len(data)
    assert buffer.samples + buffer.dropped == 100
    found = list(buffer.read())
    assert len(found) == buffer.samples
    assert [each.dropped for each in found] == [buffer.dropped] + [0] * (len(found) - 1)
    assert all(_equal(each, _sample(1000)) for each in found)
    buffer.close()
