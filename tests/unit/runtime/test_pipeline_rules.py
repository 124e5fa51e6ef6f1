"""What pipelines may be configured to do, who gives way in their queue, and what is counted."""

from __future__ import annotations

import threading

import pytest

from edgekit.contracts.errors import UnavailableError, UsageError
from edgekit_runtime import config
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import counts, metrics
from edgekit_runtime.pipelines.counts import Counts, State
from edgekit_runtime.pipelines.intake import Fate, Gate, Intake, Item, Outcome
from edgekit_runtime.pipelines.spec import Drop, PipelineSpec
from edgekit_runtime.sources.admission import Admission

FOLDER = {"kind": "folder", "path": "/in"}
FILE = {"kind": "file", "path": "/out"}


def _table(**changes):
    return {"name": "door", "model": "meter", "source": FOLDER, "sinks": [FILE]} | changes


def _read(*tables, **sections):
    device = {"id": "dev-1", "state_dir": "/state"}
    return config.check({"device": device, "pipeline": list(tables), **sections}, "agent.toml")


def _spec(**changes) -> PipelineSpec:
    return _read(_table(**changes)).pipeline[0]


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "policy", "size"),
    [
        (FOLDER, Drop.BLOCK, 64),
        ({"kind": "mqtt", "topic": "a/+/b/#"}, Drop.OLDEST, 64),
        ({"kind": "http", "port": 8480}, Drop.NEWEST, 64),
        ({"kind": "camera", "device": 0}, Drop.OLDEST, 1),
    ],
)
def test_each_kind_of_source_has_its_own_defaults(source, policy, size):
    spec = _spec(source=source)
    assert (spec.policy, spec.queue_size) == (policy, size)
    assert _spec(source=source, queue_max=3).queue_size == 3


MQTT = {"kind": "mqtt", "topic": "t"}
WEB = {"kind": "webhook", "url": "http://h/x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "colour"),
        ({"name": "Door"}, "name: 'Door'"),
        ({"model": "a/b"}, "model: 'a/b'"),
        ({"sinks": []}, "sinks: 0"),
        ({"sinks": [FILE] * 5}, "sinks: 5"),
        ({"queue_max": 0}, "queue_max: 0"),
        ({"queue_bytes_max": 10}, "queue_bytes_max"),
        ({"queue_bytes_max": 2000}, "holds no item"),
        ({"share": 0.0}, "share: 0"),
        ({"share": 1.5}, "share: 1.5"),
        ({"share": float("nan")}, "share: nan"),
        ({"rate_max": -1.0}, "rate_max: -1"),
        ({"rate_max": float("inf")}, "rate_max: inf"),
        ({"age_s_max": -1.0}, "age_s_max"),
        ({"drop": "random"}, r"\$\.drop"),
        ({"source": {"kind": "smoke"}}, r"'smoke' - at `\$\.source\.kind`"),
        ({"source": {"path": "/in"}}, r"kind.*\$\.source"),
        ({"source": FOLDER | {"path": ""}}, "source.path"),
        ({"source": FOLDER | {"pattern": "a/b"}}, "source.pattern"),
        ({"source": FOLDER | {"settle_s": -1.0}}, "source.settle_s"),
        ({"source": FOLDER | {"poll_s": 0.0}}, "source.poll_s"),
        ({"source": FOLDER | {"bytes_max": 0}}, "source.bytes_max"),
        ({"source": FOLDER | {"fields": ["a"]}}, "source.fields"),
        ({"source": MQTT | {"topic": "a/#/b"}}, "no filter"),
        ({"source": MQTT | {"topic": ""}}, "no filter"),
        ({"source": MQTT | {"port": 0}}, "source.port: 0"),
        ({"source": MQTT | {"password_file": "/p"}}, "without a username"),
        ({"source": MQTT | {"payload": "raw", "id_key": "id"}}, "source.id_key"),
        ({"source": {"kind": "http", "port": 70000}}, "source.port: 70000"),
        ({"source": {"kind": "http", "port": 1}, "drop": "block"}, "not kept waiting"),
        ({"source": {"kind": "camera", "device": ""}}, "source.device"),
        ({"source": {"kind": "camera", "device": 0, "payload": "raw"}}, "source.payload"),
        ({"source": {"kind": "camera", "device": 0, "at_end": "x"}}, "source.at_end"),
        ({"sinks": [{"kind": "file", "path": ""}]}, r"sinks\[0\].path"),
        ({"sinks": [FILE | {"bytes_max": 1}]}, r"sinks\[0\].bytes_max"),
        ({"sinks": [FILE | {"files_max": 0}]}, r"sinks\[0\].files_max"),
        ({"sinks": [FILE | {"fsync": "maybe"}]}, "fsync"),
        ({"sinks": [FILE, {"kind": "mqtt", "topic": "a/+"}]}, r"sinks\[1\].topic"),
        ({"sinks": [{"kind": "webhook", "url": "ftp://h"}]}, r"sinks\[0\].url"),
        ({"sinks": [WEB | {"timeout_s": 0.0}]}, "timeout_s"),
        ({"sinks": [WEB | {"attempts_max": 0}]}, "attempts_max"),
        ({"sinks": [WEB | {"queue_max": 0}]}, "queue_max"),
        ({"sinks": [WEB | {"headers": {"a b": "c"}}]}, "headers: 'a b'"),
        ({"sinks": [WEB | {"headers": {"a": "b\r\nc: d"}}]}, "headers: 'a'"),
    ],
)
def test_a_refusal_names_the_pipeline_and_the_key(changes, message):
    with pytest.raises(UsageError, match=message) as refused:
        _read(_table(**changes))
    assert refused.value.message.startswith("agent.toml: pipeline '")
    assert refused.value.hint


def test_what_two_pipelines_cannot_share_is_refused():
    other = _table(name="yard", source=FOLDER | {"path": "/in2"}, sinks=[FILE | {"path": "/out2"}])
    assert len(_read(_table(), other).pipeline) == 2
    push = {"kind": "http", "port": 8480}
    for first, second, key in [
        (_table(), other | {"name": "door"}, "name"),
        (_table(), other | {"source": FOLDER}, "source.path"),
        (_table(), other | {"sinks": [FILE]}, "sinks.path"),
        (_table(source=push), other | {"source": push}, "source.port"),
    ]:
        with pytest.raises(UsageError, match=key):
            _read(first, second)
    with pytest.raises(UsageError, match=r"is \[serve\] port"):
        _read(_table(source=push), serve={"port": 8480})
    with pytest.raises(UsageError, match=r"\[\[pipeline\]\]"):
        config.check({"device": {"id": "d", "state_dir": "/s"}, "pipeline": {}}, "agent.toml")
    with pytest.raises(UsageError, match="9 pipelines"):
        _read(*[_table()] * 9)


# --- the queue -----------------------------------------------------------------------------------


def _item(name: str, size: int = 1) -> Item:
    return Item(name, b"x", size, 0.0)


@pytest.mark.parametrize(
    ("policy", "offered", "kept", "gone"),
    [
        (Drop.OLDEST, "abcde", "cde", "ab"),
        (Drop.NEWEST, "abcde", "abc", "de"),
        (Drop.OLDEST, "abc", "abc", ""),
    ],
)
def test_who_gives_way_when_the_queue_is_full(policy, offered, kept, gone):
    intake = Intake(policy, items_max=3, bytes_max=100)
    lost = [each.id for name in offered for each in intake.offer(_item(name))]
    assert "".join(lost) == gone
    assert "".join(each.id for each in intake.close()) == kept
    assert [each.id for each in intake.offer(_item("z"))] == ["z"]  # closed


@pytest.mark.parametrize(("policy", "kept"), [(Drop.OLDEST, "bc"), (Drop.NEWEST, "ac")])
def test_bytes_are_bounded_like_items(policy, kept):
    intake = Intake(policy, items_max=10, bytes_max=10)
    for name, size in (("a", 6), ("b", 6), ("c", 4)):
        intake.offer(_item(name, size))
    assert "".join(each.id for each in intake.close()) == kept


def test_room_is_waited_for_until_something_is_taken():
    intake = Intake(Drop.BLOCK, items_max=1, bytes_max=100)
    assert intake.wait_for_room(0)
    intake.offer(_item("a"))
    assert not intake.wait_for_room(0)
    taker = threading.Timer(0.05, lambda: intake.take(10))
    taker.start()
    assert intake.wait_for_room(30)
    taker.join()
    assert intake.take(0) is None


def test_the_rate_is_bounded_after_a_burst_of_a_second():
    gate = Gate(1.0, rate_max=2.0)
    assert [gate.wait_s(0.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert gate.wait_s(0.4) == pytest.approx(0.1)
    assert gate.wait_s(0.5) == 0.0
    assert gate.wait_s(0.4) > 0  # time that goes back gives nothing
    passed = sum(gate.wait_s(1 + step / 100) == 0.0 for step in range(1000))
    assert 20 <= passed <= 22
    assert Gate(1.0, 0.0).wait_s(0.0) == 0.0


def test_the_share_is_kept_and_an_id_is_always_decided_alike():
    gate = Gate(0.25, 0.0)
    taken = {n for n in range(4000) if gate.sampled(f"id-{n}")}
    assert 850 < len(taken) < 1150
    assert taken == {n for n in range(4000) if Gate(0.25, 0.0).sampled(f"id-{n}")}


# --- the page ------------------------------------------------------------------------------------


def test_what_a_killed_process_had_in_hand_is_dropped_by_the_next(tmp_path):
    spec = _spec(sinks=[FILE, WEB])
    disk = PosixDisk()
    assert counts.read(disk, tmp_path, spec) is None
    page = Counts(disk, tmp_path, spec)
    page.add("received", 10)
    page.add("inferred", 4)
    page.refuse("decode")
    page.drop("sampled")
    page.sink(0, "delivered", 4)
    page.sink(1, "delivered", 1)
    page.sink(1, "failed", 1)
    page.state = State.RUNNING
    found = counts.read(disk, tmp_path, spec)
    assert (found.alive, found.state, found.in_hand) == (True, "running", 4)
    page.close()  # as a kill does: nothing is written
    assert counts.read(disk, tmp_path, spec).state == "stopped"
    Counts(disk, tmp_path, spec).close()
    found = counts.read(disk, tmp_path, spec)
    assert (found.starts, found.in_hand, found.dropped["ended"]) == (2, 0, 4)
    assert [sink.dropped["ended"] for sink in found.sinks] == [0, 2]
    report = found.report()
    assert (report.refused, report.dropped, report.delivered, report.failed) == (1, 5, 5, 3)
    text = metrics.render({"door": found})
    assert 'edgekit_pipeline_dropped_total{pipeline="door",reason="ended"} 4' in text
    assert 'edgekit_pipeline_sink_failed_total{pipeline="door",sink="1:webhook"} 1' in text
    assert counts.read(disk, tmp_path, _spec(share=0.5)) is None  # another table, other counts


def test_an_item_that_ended_the_process_three_times_in_a_row_is_not_decoded_again(tmp_path):
    tries = []
    for _ in range(counts.DEATHS_MAX + 1):
        page = Counts(PosixDisk(), tmp_path, _spec())
        assert page.may_decode(5)
        page.decoded()
        tries.append(page.may_decode(7))
        page.close()  # in the decoder, as a crash there does
    assert tries == [True] * counts.DEATHS_MAX + [False]


def test_a_page_that_is_not_one_is_made_anew(tmp_path):
    spec = _spec()
    folder = tmp_path / counts.FOLDER
    folder.mkdir()
    (folder / "door.counts").write_bytes(b"garbage")
    assert counts.read(PosixDisk(), tmp_path, spec) is None
    Counts(PosixDisk(), tmp_path, spec).close()
    assert counts.read(PosixDisk(), tmp_path, spec).received == 0


def test_two_processes_never_count_on_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "LOCK_S_MAX", 0.1)
    page = Counts(PosixDisk(), tmp_path, _spec())
    with pytest.raises(UnavailableError, match="another process"):
        Counts(PosixDisk(), tmp_path, _spec())
    page.close()


# --- the door ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "items", "dropped"),
    [
        ({"drop": "oldest", "queue_max": 2}, 5, {"queue_full": 3}),
        ({"drop": "newest", "queue_max": 2}, 5, {"queue_full": 3}),
        ({"drop": "oldest", "rate_max": 2.0}, 5, {"rate": 3}),
        ({"drop": "oldest", "share": 1e-9}, 5, {"sampled": 5}),
    ],
)
def test_every_item_that_arrives_is_queued_or_dropped_for_a_reason(
    tmp_path, changes, items, dropped
):
    spec, fates = _spec(**changes), []
    page = Counts(PosixDisk(), tmp_path, spec)
    intake = Intake(spec.policy, spec.queue_size, spec.queue_bytes_max)
    door = Admission(spec, page, intake, threading.Event())
    for number in range(items):
        door.admit(Item(f"i{number}", b"", 0, 0.0, settle=fates.append))
    found = counts.read(PosixDisk(), tmp_path, spec)
    assert {why: n for why, n in found.dropped.items() if n} == dropped
    assert (found.received, found.in_hand) == (items, len(intake))
    reasons = [Fate(Outcome.DROPPED, why) for why, count in dropped.items() for _ in range(count)]
    assert fates == reasons
    page.close()


def test_a_source_that_waits_for_room_gets_its_item_back_when_the_process_ends(tmp_path):
    spec, fates, stopping = _spec(queue_max=1), [], threading.Event()
    page = Counts(PosixDisk(), tmp_path, spec)
    intake = Intake(spec.policy, 1, spec.queue_bytes_max)
    door = Admission(spec, page, intake, stopping)
    assert door.admit(_item("a"))
    assert not door.has_room()
    stopping.set()
    assert not door.admit(Item("b", b"", 0, 0.0, settle=fates.append))
    assert fates == [Fate(Outcome.RETURNED)]
    assert counts.read(PosixDisk(), tmp_path, spec).dropped["ended"] == 1
    page.close()
