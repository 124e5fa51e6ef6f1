"""How sinks end an answer: files, webhooks, and the queue in front of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agentkit.disks import FaultyDisk
from agentkit.pipelines import Webhook, lines
from agentkit.world import wait_for

from edgekit.contracts.errors import BadInputError, ResourceError, UnavailableError
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines.spec import (
    FileSink,
    Fsync,
    WebhookSink,
)
from edgekit_runtime.sinks.file import FileWriter
from edgekit_runtime.sinks.outlet import Line, Outlet
from edgekit_runtime.sinks.webhook import WebhookCaller


def _line(name, done=lambda: None, size=10):
    return Line(name, json.dumps({"id": name, "fill": "x" * size}).encode(), done)


@pytest.mark.parametrize("fsync", list(Fsync))
def test_files_are_rotated_by_size_and_the_oldest_goes(tmp_path, fsync):
    sink = FileSink(path=str(tmp_path / "deep" / "out.jsonl"), bytes_max=1024, files_max=3,
                    fsync=fsync)  # fmt: skip
    writer = FileWriter(PosixDisk(), sink)
    for number in range(40):
        writer.deliver(_line(f"n{number:02}", size=100))
        writer.idle()
    writer.close()
    path = Path(sink.path)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "out.jsonl", "out.jsonl.1", "out.jsonl.2",
    ]  # fmt: skip
    assert all(p.stat().st_size <= 1024 for p in path.parent.iterdir())
    kept = [each["id"] for each in lines(path)]
    assert kept == [f"n{number:02}" for number in range(40 - len(kept), 40)]
    only = FileWriter(PosixDisk(), FileSink(path=str(path), bytes_max=1024, files_max=1))
    for number in range(20):
        only.deliver(_line(f"m{number:02}", size=100))
    assert json.loads(path.read_text().splitlines()[-1])["id"] == "m19"


def test_half_a_line_stays_alone_after_a_power_cut_and_a_full_disk(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"id": "torn')
    writer = FileWriter(
        FaultyDisk(full_from=1, seed=4), FileSink(path=str(path), fsync=Fsync.ALWAYS)
    )
    writer.deliver(_line("a"))
    with pytest.raises(ResourceError, match="no space"):
        writer.deliver(_line("b"))
    writer._disk = PosixDisk()  # there is space again
    writer.deliver(_line("c"))
    good = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["id"] for line in good] == ["a", "c"]


class Stubborn:
    """Fails as told, then delivers."""

    def __init__(self, **errors):
        self.errors, self.lines, self.closed = errors, [], False

    def deliver(self, line):
        if self.errors.get(line.id):
            raise self.errors[line.id].pop(0)
        self.lines.append(line.id)

    def idle(self):
        pass

    def close(self):
        self.closed = True


class Tally:
    def __init__(self):
        self.seen: list[str] = []

    def sink(self, _index, name, count=1):
        self.seen += [name] * count


def _outlet(sink, tally, **options):
    settings = {"queue_max": 2, "attempts_max": 3, "blocks": False} | options
    return Outlet("sink", sink, tally, 0, **settings)


def test_a_sink_is_tried_again_and_gives_up_after_its_tries():
    again = UnavailableError("later", retry_after_s=0.0)
    errors = {"late": [again] * 2, "never": [again] * 3, "refused": [BadInputError("no")]}
    sink, tally, done = Stubborn(**errors), Tally(), []
    outlet = _outlet(sink, tally, queue_max=10)
    outlet.start()
    for name in ("late", "never", "refused", "good"):
        outlet.put(_line(name, lambda name=name: done.append(name)))
    wait_for(lambda: len(done) == 4, what="all ended")
    outlet.stop(1.0)
    outlet.join(30)
    assert sink.closed
    assert sink.lines == ["late", "good"]
    assert [each for each in tally.seen if each != "retries"] == [
        "delivered", "failed", "failed", "delivered",
    ]  # fmt: skip
    assert tally.seen.count("retries") == 4


def test_a_full_outlet_drops_the_oldest_and_counts_what_a_stop_leaves():
    sink, tally, done = Stubborn(hand=[UnavailableError("away", retry_after_s=60.0)]), Tally(), []
    outlet = _outlet(sink, tally, attempts_max=0)
    outlet.start()
    outlet.put(_line("hand", lambda: done.append("hand")))
    wait_for(lambda: "retries" in tally.seen, what="tried")
    for name in ("a", "b", "c"):
        outlet.put(_line(name, lambda name=name: done.append(name)))
    assert done == ["a"]
    outlet.stop(0.0)
    outlet.join(30)
    assert sorted(done) == ["a", "b", "c", "hand"]
    assert sorted(tally.seen) == ["ended", "ended", "ended", "queue_full", "retries"]


def test_webhooks_ask_again_only_where_that_may_help(tmp_path):
    hook = Webhook()
    caller = WebhookCaller(WebhookSink(url=hook.url + "?key=secret"))
    try:
        for status, kind in ((503, UnavailableError), (429, UnavailableError),
                             (500, UnavailableError), (302, BadInputError),
                             (404, BadInputError)):  # fmt: skip
            hook.answers.append(status)
            with pytest.raises(kind, match=str(status)) as raised:
                caller.deliver(_line("a"))
            assert "secret" not in str(raised.value)
        caller.deliver(_line("a"))
        assert [each["id"] for each in hook.received] == ["a"]
    finally:
        caller.close()
        hook.close()
    with pytest.raises(UnavailableError):
        caller.deliver(_line("b"))
