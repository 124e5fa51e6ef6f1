"""The power is cut after every system call by which a real supervisor changed its state.

It runs under strace over tiny runtimes: an update that is confirmed, and one that is rolled back.
After each cut, with what was not fsynced kept, dropped, torn or zeroed, the record must name a
runtime that lies there complete, and never one that was quarantined before.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from agentkit import crashfs, runtimes, syscalls
from agentkit.crashfs import OUTCOMES, CrashFolder
from agentkit.runtimes import SupervisorProcess, lay_out, prove

from edgekit_runtime.supervisor import rules
from edgekit_runtime.supervisor.book import _START, Book, _parse

pytestmark = pytest.mark.integration
SCALE = int(os.environ.get("EDGEKIT_TEST_SCALE", "1"))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """(state folder, changes, old, new, bad)"""
    if shutil.which("strace") is None:
        message = "strace is not installed"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    state = tmp_path_factory.mktemp("supervisor") / "s"
    state.mkdir()
    bad = lay_out(state, "bad", runtimes.DOES_NOT_START)
    new = lay_out(state, "new", runtimes.switches(bad))
    old = prove(state, lay_out(state, "old", runtimes.switches(new, confirm_s=0.0)))
    before = {path: path.read_bytes() for path in state.iterdir() if path.is_file()}
    trace = state.with_suffix(".trace")
    supervisor = SupervisorProcess(state, *syscalls.strace(trace)).start()
    try:
        supervisor.wait(lambda: bad in supervisor.record()["failed"], "rolled back")
        supervisor.wait(lambda: supervisor.ran()[-1] == "new", "new runs again")
        agent = supervisor.agent_pid()
        os.kill(int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1]), 15)
        supervisor.process.wait(60)
    finally:
        supervisor.close()
    with trace.open(errors="replace") as lines:
        # Runtimes are only read; the rest is the tiny agents' own, the lock, the socket.
        changes = syscalls.read(
            lines,
            state,
            sizes={str(path): len(data) for path, data in before.items()},
            ignored=("runtimes", "ran", "asked-", "supervisor."),
        )
    return state, before, changes, old, new, bad


def _names(changes, first: str) -> list[set[str]]:
    """After each change: what the newest record on disk, or the one being written, has run."""
    found, safe, coming = [], {first}, {}
    for change in changes:
        folder, name = os.path.split(change.path)
        if name in ("runtime.a", "runtime.b") and change.kind == "write":
            record = _parse(change.data)[1]
            coming[folder] = {record["active"]}
            if not record["confirmed"] and record["tries"] == 0:
                coming[folder].add(record["fallback"])  # its last try may be this boot's
        elif change.kind == "fsync" and change.path in coming:  # the folder: now it is safe
            safe = coming.pop(change.path)
        found.append(safe.union(*coming.values()))
    return found


def test_after_every_cut_a_complete_and_unrefused_runtime_starts(story, tmp_path):
    state, before, changes, old, new, bad = story
    folder = CrashFolder(str(state))
    folder.begin({os.path.relpath(path, state): data for path, data in before.items()})
    names, cuts, boots = _names(changes, old), 0, 0
    refused = False
    for number, change in enumerate(changes):
        if not folder.apply(change):
            continue
        cuts += 1
        refused |= change.kind == "fsync" and any(bad in r["failed"] for r in _records(folder))
        chance = random.Random(number)
        for turn in range(len(OUTCOMES) * SCALE):
            tree = folder.after_cut(OUTCOMES[turn % len(OUTCOMES)], chance.getrandbits(32))
            root = tmp_path / "cut"
            crashfs.write_out(tree, root)
            (root / "runtimes").symlink_to(state / "runtimes")
            record = _boot(root)
            boots += 1
            assert record["active"] in names[number] | _asked(root), (change, tree)
            assert not (refused and record["active"] == bad)
            shutil.rmtree(root)
    print(f"cut points of the supervisor: {cuts}; outcomes booted: {boots}")
    assert cuts > 30
    assert {old, new, bad} <= set().union(*names)


def _records(folder: CrashFolder):
    tree = folder.after_cut("dropped", 0)
    parsed = [_parse(tree.get(name) or b"") for name in ("runtime.a", "runtime.b")]
    return [record for _, record in [max(parsed, key=lambda item: item[0])] if record]


def _asked(root: Path) -> set[str]:
    request = Book(str(root)).request()
    return {request["digest"]} if request else set()


def _boot(root: Path):
    """What the supervisor's start makes of the folder, up to what it would start."""
    book = Book(str(root))
    record = book.load()
    assert record is not None, "no readable record"
    request = book.request()
    if request is not None:
        record = rules.adopt(record, request)
        book.save(record)
    record = rules.begin(record, "", 1.0)
    book.save(record)
    assert book.has(record["active"])
    assert Book(str(root)).load() == record
    return record


def test_the_record_is_what_the_agent_reads_too(tmp_path):
    from edgekit_runtime import runtime_record, twocopy
    from edgekit_runtime.disk import PosixDisk

    digest = "sha256:" + "a" * 64
    failure = {"reason": "r", "at": 1.0, "attempts": 2, "token": "t"}
    book = Book(str(tmp_path))
    for number in range(3):
        book.save({**rules.fresh(digest, f"note {number}"), "failed": {"sha256:x": failure}})
    found = runtime_record.read(PosixDisk(), tmp_path)
    assert (found.active, found.note) == (digest, "note 2")
    assert found.failed["sha256:x"].attempts == 2
    assert twocopy._START == _START
