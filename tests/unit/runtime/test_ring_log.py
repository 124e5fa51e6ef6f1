"""The agent's own log: bounded, readable after any end."""

from __future__ import annotations

import logging

from edgekit.contracts.errors import ResourceError
from edgekit_runtime import ringlog
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.ringlog import RingLog

BOUND = 16 * 1024


def _say(handler, text, level=logging.INFO):
    handler.handle(logging.LogRecord("edgekit", level, __file__, 1, text, (), None))


def _texts(root):
    return [line.text for line in ringlog.read(PosixDisk(), root, BOUND)]


def test_lines_are_gathered_and_written_together(tmp_path):
    handler = RingLog(PosixDisk(), tmp_path, BOUND)
    _say(handler, "one")
    _say(handler, "two", logging.WARNING)
    assert _texts(tmp_path) == []
    handler.close()
    assert _texts(tmp_path) == ["one", "two"]


def test_the_newest_lines_stay_and_the_bound_holds(tmp_path):
    handler = RingLog(PosixDisk(), tmp_path, BOUND)
    for number in range(2000):
        _say(handler, f"line {number}")
        if number % 7 == 0:
            handler.flush()
    handler.close()
    texts = _texts(tmp_path)
    assert texts[-1] == "line 1999"
    assert len(texts) > 50
    assert texts == [f"line {n}" for n in range(2000 - len(texts), 2000)]
    assert sum(path.stat().st_size for path in (tmp_path / "log").iterdir()) <= BOUND


def test_a_torn_line_costs_itself_only(tmp_path):
    handler = RingLog(PosixDisk(), tmp_path, BOUND)
    _say(handler, "before")
    handler.close()
    (path,) = (tmp_path / "log").iterdir()
    path.write_bytes(path.read_bytes() + b'{"at":1.0,"lev\0\0\0')
    again = RingLog(PosixDisk(), tmp_path, BOUND)
    _say(again, "after")
    again.close()
    assert _texts(tmp_path) == ["before", "after"]


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path):
    class Full(PosixDisk):
        def append(self, *_, **__):
            raise ResourceError("no space left")

    handler = RingLog(Full(), tmp_path, BOUND)
    _say(handler, "lost")
    handler.close()
    assert _texts(tmp_path) == []
