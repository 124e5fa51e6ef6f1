"""The process of one pipeline: how it ends, and what it says."""

from __future__ import annotations

import socket
import subprocess
import sys

import msgspec
from agentkit.ports import free_port
from agentkit.world import wait_for

from edgekit.contracts.errors import UnavailableError
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import counts
from edgekit_runtime.pipelines.orders import STOP, Note, Order
from edgekit_runtime.pipelines.spec import (
    FileSink,
    FolderSource,
    HttpSource,
    Payload,
    PipelineSpec,
)


def _process(tmp_path, **changes):
    ours, theirs = socket.socketpair()
    spec = PipelineSpec(name="door", model="meter", source=HttpSource(port=free_port()),
                        sinks=(FileSink(path=str(tmp_path / "out.jsonl")),))  # fmt: skip
    spec = msgspec.structs.replace(spec, **changes)
    order = Order(device="d", socket=str(tmp_path / "none"), state_dir=str(tmp_path), spec=spec)
    with theirs:
        started = subprocess.Popen(
            [sys.executable, "-m", "edgekit_runtime.sources", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
    ours.sendall(msgspec.json.encode(order) + b"\n")
    return started, ours, spec


def _state(tmp_path, spec):
    found = counts.read(PosixDisk(), tmp_path, spec)
    return found.state if found else ""


def test_a_process_ends_with_its_agent_also_when_nobody_heard_what_it_said(tmp_path):
    started, ours, spec = _process(
        tmp_path, source=FolderSource(path=str(tmp_path / "none"), payload=Payload.JSON)
    )
    wait_for(lambda: _state(tmp_path, spec) == "away", what="says that its folder is away")
    ours.close()  # resets the connection: there is something unread
    assert started.wait(60) == 0
    assert _state(tmp_path, spec) == "stopped"


def test_a_process_that_is_told_to_stop_ends_in_order(tmp_path):
    started, ours, spec = _process(tmp_path)
    wait_for(lambda: _state(tmp_path, spec) == "waiting", what="runs")
    with ours:
        ours.sendall(STOP)
        assert started.wait(60) == 0


def test_a_port_in_use_ends_the_process_and_says_why(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        started, ours, _ = _process(tmp_path, source=HttpSource(port=port))
        with ours:
            assert started.wait(60) == UnavailableError.exit_code
            note = msgspec.json.decode(ours.recv(65536).splitlines()[-1], type=Note)
    assert note.level == "CRITICAL"
    assert f"source.port {port}" in note.text
