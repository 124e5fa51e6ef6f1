"""What becomes of one item: answered, refused, given up or given back."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from agentkit import layouts
from agentkit.world import wait_for

from edgekit.contracts.errors import BadInputError
from edgekit_runtime import http1, oip
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import counts, endpoint
from edgekit_runtime.pipelines.counts import Counts
from edgekit_runtime.pipelines.endpoint import Answer, AwayError, EngineFailedError, Model, Output
from edgekit_runtime.pipelines.intake import Intake, Item
from edgekit_runtime.pipelines.run import Runner
from edgekit_runtime.pipelines.spec import (
    Drop,
    FileSink,
    FolderSource,
    HttpSource,
    MqttSource,
    Payload,
    PipelineSpec,
)
from edgekit_runtime.sinks.outlet import Line
from edgekit_runtime.sources import admission
from edgekit_runtime.sources.folder import FolderReader

ROW = b"[1, 2, 3, 4]"


class Script:
    """An endpoint that answers what it is told to, in order; then well."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.contracts = [layouts.contract()]
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def model(self):
        found = self.contracts.pop(0) if len(self.contracts) > 1 else self.contracts[0]
        if isinstance(found, Exception):
            raise found
        return Model(versions=("1",), edgekit_contract=found)

    def infer(self, request_id, arrays, _taken_at):
        self.asked.append((request_id, arrays["x"].shape))
        if self.answers:
            found = self.answers.pop(0)
            if isinstance(found, Exception):
                raise found
            return found
        output = Output(name="scores", datatype="FP32", shape=(1, 3), data=[0.1, 0.7, 0.2])
        return Answer(model_name="meter", model_version="1", outputs=(output,))


class Kept:
    def __init__(self):
        self.lines: list[Line] = []

    def put(self, line):
        self.lines.append(line)


class Rig:
    """One runner in a thread."""

    def __init__(self, folder, script, *items, source=None, **changes):
        source = source or MqttSource(topic="t")
        sinks = (FileSink(path="/out"),)
        self.spec = PipelineSpec(name="door", model="meter", source=source, sinks=sinks, **changes)
        self.folder, self.sink, self.fates = folder, Kept(), []
        self.page = Counts(PosixDisk(), folder, self.spec)
        self.intake = Intake(self.spec.policy, self.spec.queue_size, self.spec.queue_bytes_max)
        self.stopping = threading.Event()
        self.door = admission.Admission(self.spec, self.page, self.intake, self.stopping)
        self.runner = Runner(
            spec=self.spec, counts=self.page, intake=self.intake, admission=self.door,
            endpoint=script, outlets=[self.sink],
        )  # fmt: skip
        for item in items:
            self.admit(item)
        self.thread = threading.Thread(target=self.runner.run, daemon=True)
        self.thread.start()

    def admit(self, name, payload=ROW, at=None):
        at = time.time() if at is None else at
        settle = lambda fate: self.fates.append((name, fate.outcome.value, fate.reason))  # noqa: E731
        return self.door.admit(Item(name, payload, len(payload), at, settle=settle))

    def ended(self, count):
        wait_for(lambda: len(self.fates) >= count, what=f"{count} ended, got {self.fates}")
        return self.stop()

    def stop(self):
        self.stopping.set()
        self.thread.join(30)
        found = counts.read(PosixDisk(), self.folder, self.spec)
        self.page.close()
        return found


def test_an_answer_says_what_it_answers_and_by_whom(tmp_path):
    rig = Rig(tmp_path, Script(), "a")
    assert rig.ended(1).inferred == 1
    assert rig.fates == [("a", "inferred", "")]
    told = json.loads(rig.sink.lines[0].body)
    assert (told["id"], told["pipeline"], told["model"], told["version"]) == (
        "a", "door", "meter", "1",
    )  # fmt: skip
    assert (told["class"], told["label"]) == (1, "mid")
    assert told["confidence"] == pytest.approx(0.7)


def test_an_answer_that_cannot_be_told_is_refused_and_the_next_goes_on(tmp_path):
    words = Output(name="scores", datatype="BYTES", shape=(1, 3), data=["a", "b", "c"])
    script = Script(Answer(model_name="meter", model_version="1", outputs=(words,)))
    found = Rig(tmp_path, script, "words", "numbers").ended(2)
    assert (found.inferred, found.refused["internal"]) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (BadInputError("shape"), "contract"),
        (EngineFailedError("overflow"), "engine"),
        (endpoint.TooLargeError("body"), "too_large"),
        (MemoryError(), "too_large"),
        (ZeroDivisionError("a bug"), "internal"),
    ],
)
def test_what_will_never_be_answered_is_refused_once(tmp_path, answer, reason):
    script = Script(answer)
    found = Rig(tmp_path, script, "bad", "good").ended(2)
    assert {why: n for why, n in found.refused.items() if n} == {reason: 1}
    assert [name for name, _ in script.asked] == ["bad", "good"]
    assert (found.inferred, found.in_hand) == (1, 0)


def test_not_now_is_asked_again_under_the_same_id(tmp_path):
    script = Script(AwayError("busy", retry_after_s=0.0), AwayError("busy", retry_after_s=0.01))
    script.contracts = [AwayError("no model", retry_after_s=0.0), layouts.contract()]
    rig = Rig(tmp_path, script, "a")
    found = rig.ended(1)
    assert [name for name, _ in script.asked] == ["a"] * 3
    assert (found.waits, found.inferred) == (3, 1)


def test_a_new_version_that_asks_for_another_shape_is_looked_at_once(tmp_path):
    narrow = layouts.contract(inputs=(msgspec.structs.replace(layouts.contract().inputs[0],
                                                              shape=("n", 2, 2)),))  # fmt: skip
    script = Script(BadInputError("shape"))
    script.contracts = [layouts.contract(), narrow]
    rig = Rig(tmp_path, script, source=MqttSource(topic="t", payload=Payload.RAW))
    rig.admit("a", bytes(16))
    assert rig.ended(1).inferred == 1
    assert script.asked == [("a", (1, 4)), ("a", (1, 2, 2))]


def test_while_the_model_is_away_the_oldest_give_way_and_each_is_counted(tmp_path):
    script = Script()
    script.contracts = [AwayError("no model", retry_after_s=0.05)]
    rig = Rig(tmp_path, script, queue_max=2)
    for number in range(6):
        rig.admit(f"i{number}")
    wait_for(lambda: len(rig.fates) >= 4, what="dropped")
    script.contracts = [layouts.contract()]
    wait_for(lambda: len(rig.fates) == 6, what="all ended")
    found = rig.stop()
    assert (found.dropped["queue_full"], found.inferred, found.in_hand) == (4, 2, 0)
    assert {name for name, how, _ in rig.fates if how == "inferred"} == {"i4", "i5"}


def test_stale_items_are_dropped_when_their_turn_comes(tmp_path):
    rig = Rig(tmp_path, Script(), age_s_max=60.0)
    rig.admit("old", at=time.time() - 61)
    rig.admit("new")
    found = rig.ended(2)
    assert rig.fates == [("old", "dropped", "stale"), ("new", "inferred", "")]
    assert found.dropped["stale"] == 1


def test_an_item_in_hand_is_given_back_when_the_process_ends(tmp_path):
    script = Script()
    script.contracts = [AwayError("no model", retry_after_s=30.0)]
    rig = Rig(tmp_path, script, "a", source=HttpSource(port=1))
    wait_for(lambda: counts.read(PosixDisk(), tmp_path, rig.spec).waits, what="waits")
    found = rig.stop()
    assert rig.fates == [("a", "returned", "")]
    assert (found.dropped["ended"], found.in_hand) == (1, 0)


def test_where_nothing_may_be_dropped_the_source_is_told_after_the_sinks(tmp_path):
    rig = Rig(tmp_path, Script(), "a", drop=Drop.BLOCK)
    wait_for(lambda: rig.sink.lines, what="answered")
    assert rig.fates == []
    rig.sink.lines[0].done()
    assert rig.ended(1).inferred == 1


def test_a_request_carries_its_id_its_age_and_its_values(tmp_path):
    path, heard = str(tmp_path / "s"), []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def answer():
            with listener.accept()[0] as sock:
                parser = http1.Parser(10_000, http1.Room(10_000))
                while (request := parser.take()) is None:
                    if (room := parser.room()) is None:
                        parser.feed(sock.recv(65536))
                    else:
                        parser.received(sock.recv_into(room))
                heard.append(request)
                body = b'{"model_name": "m", "model_version": "1", "outputs": []}'
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        asked = endpoint.Endpoint(path, "meter")
        row = np.array([[1, 2, 3, 4]], ">f4").astype(np.float32)
        assert asked.infer("a", {"x": row}, 12.5).model_version == "1"
        thread.join(30)
        asked.close()
    (taken,) = heard
    found, arrays = oip.parse_infer(taken.body, 10_000, taken.json_length)
    assert (found.id, found.parameters) == ("a", {"taken_at": 12.5})
    np.testing.assert_array_equal(arrays["x"], row)
    with pytest.raises(AwayError):
        asked.infer("b", {"x": row}, 0.0)


# --- folder --------------------------------------------------------------------------------------


def test_files_that_may_not_be_read_fail_and_a_folder_that_goes_is_away(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="edgekit-inbox-"))
    folder.chmod(0o777)
    source = FolderSource(path=str(folder), payload=Payload.JSON, settle_s=0.0, poll_s=0.05)
    rig = Rig(tmp_path, Script(), source=source)
    reader = FolderReader(source, rig.door)
    (folder / "secret.json").write_bytes(ROW)
    (folder / "secret.json").chmod(0)
    user = os.geteuid()
    thread = threading.Thread(target=reader.run, daemon=True)
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        thread.start()
        wait_for((folder / "failed" / "secret.json.reason").exists, what="failed")
    finally:
        os.seteuid(user)
    reason = (folder / "failed" / "secret.json.reason").read_text()
    assert reason == "unreadable: Permission denied\n"
    gone = folder.with_name(folder.name + "-gone")
    folder.rename(gone)
    wait_for(lambda: rig.door.away, what="away")
    gone.rename(folder)
    (folder / "a.json").write_bytes(ROW)
    wait_for(lambda: rig.sink.lines, what="goes on")
    rig.sink.lines[0].done()
    wait_for((folder / "done" / "a.json").exists, what="done")
    found = rig.stop()
    thread.join(30)
    assert (found.inferred, found.refused["unreadable"]) == (1, 1)
