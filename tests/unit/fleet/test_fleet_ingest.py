"""Ingest against a real SQLite database: exactly once, order-free, unstoppable by garbage."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from fleetkit import messages as m
from fleetkit.links import MemoryLink

from edgekit.contracts import codec, frames, topics
from edgekit.contracts.errors import ResourceError
from edgekit.contracts.limits import ACK_INTERVALS_MAX
from edgekit.contracts.messages import Ack, DeviceConfig, DeviceEvent, SlotEvent
from edgekit.contracts.states import SlotState
from edgekit_fleet.ingest import Ingest
from edgekit_fleet.queries import Queries
from edgekit_fleet.store import devices, twins
from edgekit_fleet.store.engine import Database
from edgekit_fleet.views import InferencesView

NOW = 1000.0


class Bench:
    """An ingest on its own database, driven by hand."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.database = Database.open(folder)
        self.owed = 0
        self.ingest = self.make()
        self.queries = Queries(self.database, tenant=m.TENANT, report_s=30.0)

    def make(self) -> Ingest:
        def owed() -> None:
            self.owed += 1

        return Ingest(
            self.database,
            tenant=m.TENANT,
            config=DeviceConfig(artifacts_url="http://127.0.0.1:1"),
            on_owed=owed,
            batch_s_max=0.01,
            batch_messages_max=100,
            clock=lambda: self.now,
        )

    def live(self, *payloads: bytes, device: str = "d1") -> list[Ack]:
        outcome = self.ingest.apply([m.live(device, payload) for payload in payloads])
        return [ack for _, ack in outcome.acks]

    @property
    def counted(self) -> InferencesView:
        return self.queries.inferences()

    def online(self, device: str = "d1") -> bool:
        return self.queries.device(device, self.now).online


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    yield bench
    bench.database.close()


def test_a_frame_is_counted_and_acked(bench: Bench) -> None:
    (ack,) = bench.live(m.frame(0, m.window()))
    assert (ack.epoch, ack.boot, ack.lane, ack.intervals) == (7, 1, 1, ((0, 0),))
    totals = bench.counted.totals
    assert (totals.n, totals.errors, totals.labelled, totals.correct) == (10, 1, 4, 3)


def test_duplicates_are_acked_again_but_not_counted(bench: Bench) -> None:
    bench.live(m.counting_frame(0))
    (again,) = bench.live(m.counting_frame(0), m.counting_frame(0))
    assert again.intervals == ((0, 0),)
    assert bench.counted.totals.n == 10
    assert bench.counted.frames_duplicate == 2


def test_frames_out_of_order_leave_no_gap(bench: Bench) -> None:
    acks = [bench.live(m.counting_frame(seq))[0].intervals for seq in (2, 0, 1)]
    assert acks == [((2, 2),), ((0, 0),), ((0, 2),)]
    assert bench.counted.totals.n == 30


def test_an_ack_repeats_earlier_frames_that_may_have_lost_theirs(bench: Bench) -> None:
    bench.live(*(m.counting_frame(seq) for seq in range(5)))
    (ack,) = bench.live(m.counting_frame(5))
    assert ack.intervals == ((0, 5),)


@pytest.mark.parametrize("part", ["epoch", "boot", "lane"])
def test_equal_numbers_of_another_stream_are_other_frames(bench: Bench, part: str) -> None:
    bench.live(m.counting_frame(0))
    other = m.frame(0, m.window(region="other"), **{part: 2})
    bench.live(other)
    assert bench.counted.totals.n == 20


def test_a_window_drained_twice_counts_once(bench: Bench) -> None:
    bench.live(m.frame(0, m.window()), m.frame(1, m.window()))
    assert bench.counted.totals.n == 10
    assert bench.counted.windows_duplicate == 1


def test_windows_of_an_empty_range_rest_on_their_frames(bench: Bench) -> None:
    overflow = m.window(first=5, last=5)
    bench.live(m.frame(0, overflow), m.frame(1, overflow), m.frame(1, overflow))
    assert bench.counted.totals.n == 20


def test_many_gaps_are_acked_in_bounded_messages(bench: Bench) -> None:
    numbers = range(0, 2 * ACK_INTERVALS_MAX + 20, 2)
    acks = bench.live(*(m.counting_frame(seq) for seq in numbers))
    assert [len(ack.intervals) for ack in acks] == [ACK_INTERVALS_MAX, 10]
    assert all(len(codec.encode(ack)) < 16 * 1024 for ack in acks)


def test_garbage_is_counted_and_stops_nothing(bench: Bench) -> None:
    good = m.counting_frame(0)
    torn, flipped = good[:-1], good[:-1] + bytes([good[-1] ^ 1])
    batch = [m.live("d1", payload) for payload in (b"", b"garbage", torn, flipped, good)]
    batch += [
        m.incoming("d1", topics.REPORTED, b"{"),
        m.incoming("d1", topics.REPORTED, b'{"gen_observed": 0}'),
        m.incoming("d1", topics.PRESENCE, b"[]"),
        m.incoming("d1", topics.DESIRED, b"{}"),
        m.incoming("d1", topics.PRESENCE, b"x" * 20_000),
    ]
    outcome = bench.ingest.apply(batch)
    assert [ack.intervals for _, ack in outcome.acks] == [((0, 0),)]
    assert bench.counted.totals.n == 10
    assert bench.counted.frames_damaged == 4
    assert bench.counted.messages_malformed == 5


@pytest.mark.parametrize(
    "bad",
    [
        m.window(n=-1),
        m.window(n=2, errors=3),
        m.window(labelled=1, correct=2),
        m.window(first=9, last=3),
        m.window(n=2**60),
        m.window(model="x" * 1000),
        m.window(probes={"class": (-1, 2)}),
        m.window(violated={"x nan reject": -1}),
        m.window(outside={f"x[{number}]": 1 for number in range(500)}),
    ],
)
def test_an_intact_frame_with_impossible_counts_is_refused_once(bench: Bench, bad: object) -> None:
    """It is acked, so that the device does not send it for ever, and leaves an event."""
    (ack,) = bench.live(m.frame(0, bad))
    assert ack.intervals == ((0, 0),)
    assert bench.counted.totals.n == 0
    assert bench.counted.frames_damaged == 1
    (event,) = bench.queries.events(device="d1", limit=5).events
    assert event.kind == "frame_refused"


def test_the_wrong_shard_is_refused(bench: Bench) -> None:
    right = m.address("d1").shard
    payload = m.counting_frame(0)
    wrong = m.incoming("d1", topics.TELEMETRY_LIVE, payload, shard=(right + 1) % 256)
    assert bench.ingest.apply([wrong]).acks == []
    assert bench.queries.device_list(NOW) == []
    bench.live(payload)
    assert bench.ingest.apply([wrong]).acks == []
    assert bench.counted.totals.n == 10


def test_a_new_device_is_given_the_managers_settings(bench: Bench) -> None:
    outcome = bench.ingest.apply([m.incoming("d1", topics.REPORTED, m.reported(0))])
    assert outcome.republish
    with bench.database.read() as connection:
        (owed,) = twins.owed(connection, m.TENANT, 10)
    desired = twins.document(owed.payload, "test")
    assert (desired.gen, desired.config.artifacts_url) == (1, "http://127.0.0.1:1")


def test_a_device_with_a_past_we_do_not_know_keeps_what_it_runs(bench: Bench) -> None:
    bench.ingest.apply([m.incoming("d1", topics.REPORTED, m.reported(9))])
    with bench.database.read() as connection:
        assert twins.owed(connection, m.TENANT, 10) == []


def test_a_device_ahead_of_us_is_overtaken(bench: Bench) -> None:
    for gen in (0, 41):
        bench.ingest.apply([m.incoming("d1", topics.REPORTED, m.reported(gen))])
    assert bench.queries.device("d1", NOW).gen == 42


def test_a_device_behind_is_sent_its_document_again_but_not_in_a_loop(bench: Bench) -> None:
    behind = m.incoming("d1", topics.REPORTED, m.reported(0))
    bench.ingest.apply([behind])
    assert bench.ingest.apply([behind]).republish
    assert not bench.ingest.apply([behind]).republish
    bench.now += 3.0
    assert bench.ingest.apply([behind]).republish


def test_presence_follows_the_newest_session(bench: Bench) -> None:
    def say(sid: str, *, online: bool) -> None:
        payload = m.presence(sid, online=online)
        bench.ingest.apply([m.incoming("d1", topics.PRESENCE, payload)])

    say("s1", online=True)
    assert bench.online()
    say("s2", online=True)
    say("s1", online=False)  # the will of the old session arrives late
    assert bench.online()
    say("s2", online=False)
    assert not bench.online()


def test_silence_counts_as_offline(bench: Bench) -> None:
    bench.ingest.apply([m.incoming("d1", topics.PRESENCE, m.presence("s", online=True))])
    bench.now += 80.0
    assert bench.online()
    bench.now += 20.0
    assert not bench.online()


def test_a_retained_message_is_no_sign_of_life(bench: Bench) -> None:
    payload = m.presence("s", online=True)
    bench.ingest.apply([m.incoming("d1", topics.PRESENCE, payload, retained=True)])
    assert not bench.online()


def test_tombstones_and_events_are_kept(bench: Bench) -> None:
    slot = SlotEvent(
        model="meter",
        digest=m.digest_of("b"),
        release="v2",
        rollout="r2",
        state=SlotState.ROLLED_BACK,
        reason="self test",
        at=5.0,
    )
    boot = DeviceEvent(kind="boot", detail="after power loss", at=4.0)
    bench.live(m.frame(0, m.tombstone(33), slot, boot, lane=0))
    assert bench.counted.totals.evicted == 33
    assert bench.counted.devices["d1"].evicted == 33
    kinds = [(e.kind, e.state, e.detail) for e in bench.queries.events(device=None, limit=9).events]
    assert kinds == [("boot", "", "after power loss"), ("slot", "ROLLED_BACK", "self test")]


def test_a_frame_that_arrived_is_not_counted_as_evicted_too(bench: Bench) -> None:
    """The device evicted frames 0-4 while 1 was here already and 3 was still on its way."""
    bench.live(m.counting_frame(1, n=10))
    bench.live(m.frame(0, m.tombstone(50), lane=0))
    assert (bench.counted.totals.n, bench.counted.totals.evicted) == (10, 40)
    bench.live(m.counting_frame(3, n=10))
    bench.live(m.counting_frame(3, n=10))
    assert (bench.counted.totals.n, bench.counted.totals.evicted) == (20, 30)
    bench.live(m.counting_frame(2, n=10, boot=2))  # another boot: another frame
    assert (bench.counted.totals.n, bench.counted.totals.evicted) == (30, 30)


def test_records_of_a_newer_agent_are_counted_as_unknown(bench: Bench) -> None:
    class Future(m.Window, frozen=True, kw_only=True, tag="future"):
        pass

    future = Future(**{name: getattr(m.window(), name) for name in m.Window.__struct_fields__})
    bench.live(m.frame(0, future, m.window()))
    assert bench.counted.records_unknown == 1
    assert bench.counted.totals.n == 10


def test_a_failed_transaction_stores_nothing_and_acks_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ResourceError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(devices, "seen", full)
        with pytest.raises(ResourceError):
            bench.live(m.counting_frame(0))
    assert bench.counted.totals.n == 0
    assert bench.live(m.counting_frame(0))[0].intervals == ((0, 0),)
    assert bench.counted.totals.n == 10


def _run(bench: Bench, link: MemoryLink, *, until: int) -> None:
    thread = threading.Thread(target=bench.ingest.run, args=(link,))
    thread.start()
    deadline = time.monotonic() + 20.0
    while len(link.acknowledged) < until and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.ingest.stop()
    thread.join()


def test_every_message_is_acknowledged_to_the_broker_once(bench: Bench) -> None:
    link = MemoryLink()
    sent = [m.live("d1", m.counting_frame(seq), mid=seq + 1) for seq in range(20)]
    sent.append(m.live("d1", b"garbage", mid=21))
    for message in sent:
        bench.ingest.receive(message)
    _run(bench, link, until=21)
    assert sorted(message.mid for message in link.acknowledged) == list(range(1, 22))
    acks = [codec.decode(Ack, payload, what="ack") for _, payload, _ in link.published]
    assert acks[-1].intervals == ((0, 19),)
    assert not any(retained for _, _, retained in link.published)
    assert {topic for topic, _, _ in link.published} == {m.address("d1").topic(topics.ACK)}


def test_one_message_nobody_foresaw_is_dropped_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = devices.apply_reported

    def break_on_d2(connection, device_id, raw, reported, now) -> None:
        if reported.profile.labels.get("poison"):
            raise ZeroDivisionError
        apply(connection, device_id, raw, reported, now)

    monkeypatch.setattr(devices, "apply_reported", break_on_d2)
    link = MemoryLink()
    bench.ingest.receive(m.live("d1", m.counting_frame(0)))
    poison = m.reported(0, labels={"poison": "yes"})
    bench.ingest.receive(m.incoming("d2", topics.REPORTED, poison))
    bench.ingest.receive(m.live("d3", m.counting_frame(0)))
    _run(bench, link, until=3)
    assert bench.counted.totals.n == 20
    assert bench.counted.messages_malformed == 1


def test_counts_survive_a_new_process(bench: Bench) -> None:
    bench.live(m.counting_frame(0))
    bench.ingest = bench.make()  # nothing it needs is in memory
    bench.live(m.counting_frame(0), m.counting_frame(1))
    assert bench.counted.totals.n == 20


def test_frame_lanes_beyond_the_protocol_are_refused(bench: Bench) -> None:
    assert bench.live(frames.encode(epoch=1, boot=1, lane=9, seq=0, records=[m.window()])) == []
    assert bench.live(m.counting_frame(0, epoch=2**60)) == []
    assert bench.counted.frames_damaged == 2


def test_figures_of_a_shadow_are_stored_once_and_are_no_inferences(bench: Bench) -> None:
    shadow = {"n": 0, "errors": 0, "labelled": 0, "correct": 0, "nan": 2}
    shadow |= {"shadowed": 40, "agreed": 37, "shadow_errors": 1, "shadow_dropped": 5}
    window = m.window(**shadow, region="s", first=0, last=40)
    bench.live(m.frame(0, window), m.frame(1, window))
    assert bench.counted.totals.n == 0
    (found,) = bench.queries.shadow(window.model)
    assert (found.devices, found.digest) == (1, window.digest)
    assert (found.shadowed, found.agreed, found.errors) == (40, 37, 1)
    assert (found.nan, found.dropped) == (2, 5)
