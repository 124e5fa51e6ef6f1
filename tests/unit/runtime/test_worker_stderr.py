"""What workers write to stderr reaches the log in lines, bounded, and makes nobody wait."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from edgekit_runtime import ends, stderr
from edgekit_runtime.stderr import LINE_BYTES_MAX, LINES_MAX, Said


@pytest.fixture
def pipe(caplog):
    caplog.set_level(logging.DEBUG, logger="edgekit_runtime.worker")
    read, write = ends.pipe()
    said = Said(read, "meter a 1234")
    yield said, write
    said.close()
    os.close(write)


def test_lines_are_logged_under_the_tag_with_their_own_level(pipe, caplog):
    said, write = pipe
    os.write(write, b"E worker: broken\nplain text\nhalf")
    said.pump()
    os.write(write, b" a line\n\n")
    said.tag = "meter b 5678"
    said.pump()
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert found == [
        ("ERROR", "meter a 1234: broken"),
        ("WARNING", "meter a 1234: plain text"),
        ("WARNING", "meter b 5678: half a line"),
    ]
    assert said.words() == "half a line"


def test_the_line_that_names_a_crash_is_kept_although_others_follow(pipe):
    said, write = pipe
    text = b"before\nFatal Python error: Segmentation fault\n\nThread 0x1:\n  File x\nno newline"
    os.write(write, text)
    assert said.words() == "Fatal Python error: Segmentation fault"


def test_what_was_said_long_before_the_end_is_no_part_of_it(pipe, monkeypatch):
    said, write = pipe
    os.write(write, b"yesterday's news\n")
    said.pump()
    monkeypatch.setattr(stderr, "RECENT_S", -1.0)
    assert said.words() == ""


def test_a_flood_is_cut_and_counted(pipe, caplog, monkeypatch):
    said, write = pipe
    for _ in range(10):
        os.write(write, b"x\n" * 100)
        said.pump()
    os.write(write, b"y" * (3 * LINE_BYTES_MAX))
    said.pump()
    assert len(caplog.records) == LINES_MAX
    monkeypatch.setattr(stderr, "PERIOD_S", 0.0)
    said.pump()
    assert caplog.records[-1].getMessage() == "meter a 1234: 802 more lines were dropped"
    assert all(len(record.getMessage()) <= LINE_BYTES_MAX + 50 for record in caplog.records)


def test_a_worker_that_nobody_reads_goes_on():
    read, write = ends.pipe()
    script = (
        "import sys, os\nfrom edgekit_runtime.stderr import Lossy\nsys.stderr = Lossy()\n"
        "import traceback, logging\nlogging.basicConfig(stream=sys.stderr)\n"
        "for number in range(20000):\n"
        "    print('z' * 99, file=sys.stderr)\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()\n"
        "logging.error('full')\nprint('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=write, timeout=60, check=True
    )
    assert done.stdout == b"done\n"
    said = Said(read, "t")
    os.close(write)
    assert said.words() == "z" * 99
    said.close()
