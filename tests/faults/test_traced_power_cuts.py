"""The power is cut after every system call by which the real agent changed its state folder.

The agent runs under strace through stage, activate, confirm and roll back. Its calls are replayed
one by one onto a model of the disk; what each cut may leave is booted by the code that boots.
``EDGEKIT_TEST_SCALE`` tries more of the possible outcomes of each cut.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from agentkit import crashfs, layouts, syscalls, traced_agent
from agentkit.crashfs import OUTCOMES, CrashFolder
from agentkit.device import Device, InlineJobs
from agentkit.hosts import hosted
from agentkit.syscalls import Change
from agentkit.world import QUICK, AgentProcess, World, wait_for

from edgekit_runtime import deployer, lock, twocopy
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.wire import SESSIONS_SOCKET

pytestmark = pytest.mark.integration
SCALE = int(os.environ.get("EDGEKIT_TEST_SCALE", "1"))
ROW = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
OVERFLOWS = (3e38, 3e38, 3e38, 3e38)  # legal float32 that make the model answer NaN
# Writes that need no port: the lock says nothing but who holds it, and rings are mapped by design.
UNPORTED = {("create", lock.NAME), ("write", lock.NAME), ("truncate", lock.NAME)}


class TracedAgent(AgentProcess):
    """An agent under strace."""

    def start(self) -> TracedAgent:
        self.trace = self.state.with_suffix(".trace")
        agent = [sys.executable, traced_agent.__file__, self.state, "run", "--config", self.config]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*syscalls.strace(self.trace), *agent], stdout=log, stderr=log
            )
        wait_for(lambda: self.get("/v2/health/live")[0] == 200, what=self.log.read_text)
        return self

    def stop(self) -> int:
        pid, alive = lock.holder(self.state)
        assert alive
        os.kill(pid, 15)  # strace ends with what it traces
        code = self.process.wait(60)
        self.process = None
        return code


@dataclass(frozen=True)
class Story:
    """What happened, and what may therefore serve after a cut."""

    changes: list[Change]
    seeds: dict[str, int]  # weights by digest of the bundles that passed their golden set
    state: Path
    config: Path


def _need_strace() -> None:
    if shutil.which("strace") is None:
        message = "strace is not installed"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    _need_strace()
    folder = tmp_path_factory.mktemp("traced")
    writer = layouts.LayoutWriter(folder / "layout")
    good = [writer.add(seed=seed, version=str(seed)) for seed in (1, 2, 6)]
    liar = writer.add(seed=3, version="3", golden_seed=5)
    world = World(folder, writer.root)
    agent = TracedAgent(folder, "dev-1", world.broker.port)
    try:
        agent.start()
        for version in (1, 2):
            _confirm(world, agent, good[version - 1], f"v{version}")
        world.manager.deploy("dev-1", liar, release="v3")  # refused by its own golden set
        wait_for(lambda: liar in world.manager.model("dev-1").failed, what="v3 refused")
        world.manager.deploy("dev-1", good[2], release="v4")  # bad on trial: back to v2, offline
        world.manager.wait_state("dev-1", "TRIAL", release="v4")
        wait_for(lambda: _spoil(world, agent), what="v4 rolled back")
        world.manager.wait_state("dev-1", "ROLLED_BACK", release="v2")
        _confirm(world, agent, good[0], "v1")  # and back to v1 by order
        assert agent.stop() == 0
    finally:
        if agent.process is not None:
            agent.stop()
        world.close()
    with agent.trace.open(errors="replace") as lines:
        changes = syscalls.read(lines, agent.state)
    # A socket holds nothing, and is made by a call that is not traced.
    changes = [change for change in changes if Path(change.path).name != SESSIONS_SOCKET]
    return Story(changes, dict(zip(good, (1, 2, 6), strict=True)), agent.state, agent.config)


def _confirm(world, agent, digest, release) -> None:
    world.manager.deploy("dev-1", digest, release=release)
    world.manager.wait_state("dev-1", "TRIAL", release=release)
    wait_for(lambda: agent.infer(None)[0] == 200, what="served")
    for _ in range(QUICK.confirm_inferences_min):
        assert agent.infer(None)[0] == 200
    world.manager.wait_state("dev-1", "CONFIRMED", release=release)


def _spoil(world, agent) -> bool:
    agent.infer(None, OVERFLOWS)
    return bool(world.manager.model("dev-1").state.value == "ROLLED_BACK")


def test_every_change_of_the_state_folder_goes_through_the_port(story):
    root = str(story.state)
    bypassing = [
        f"{change.kind} {change.path}"
        for change in story.changes
        if change.call is None
        and change.kind not in ("store", "msync")
        and (change.kind, os.path.relpath(change.path, root)) not in UNPORTED
        and not (change.kind == "map" and _is_ring(change.path, root))
    ]
    assert bypassing == []
    assert {change.kind for change in story.changes} >= {"write", "rename", "fsync", "unlink"}


def test_the_bypass_check_finds_what_it_looks_for(tmp_path):
    """Known to catch: the same trace with one write outside the port."""
    script = tmp_path / "writes.py"
    target = tmp_path / "state" / "x"
    target.parent.mkdir()
    script.write_text(f"open({str(target)!r}, 'w').write('past the port')")
    trace = tmp_path / "trace"
    _need_strace()
    subprocess.run([*syscalls.strace(trace), sys.executable, script], check=True)
    with trace.open() as lines:
        found = syscalls.read(lines, target.parent)
    assert [(change.kind, change.call) for change in found] == [("create", None), ("write", None)]


def _is_ring(path: str, root: str) -> bool:
    return os.path.relpath(path, root).startswith("regions/") and path.endswith(".rgn")


def _may_serve(changes: list[Change]) -> list[set[str | None]]:
    """After each change: what the newest record on disk, or the one being written, has serve.

    Its candidate counts: where every blob is there, the boot itself tests and activates it. So
    does the fallback of a trial: what the rings survived with may end that trial at once.
    """
    found: list[set[str | None]] = []
    safe: set[str | None] = {None}
    coming: dict[str, set[str | None]] = {}
    for change in changes:
        if Path(change.path).name in ("record.a", "record.b"):
            if change.kind == "write":
                coming[change.path] = _named(change.data)
            elif change.kind == "end" and change.path in coming:
                safe = coming.pop(change.path)
        found.append(safe.union(*coming.values()))
    return found


def _named(raw: bytes) -> set[str | None]:
    record = msgspec.json.decode(raw[twocopy._START :], type=DeploymentRecord)
    model = record.models.get("meter")
    if model is None:
        return {None}
    named = {model.active.digest if model.active else None}
    if model.fallback is not None and not model.confirmed:
        named.add(model.fallback.digest)
    return named | ({model.candidate.digest} if model.candidate else set())


def _boots(story: Story, root: Path, allowed: set[str | None]) -> None:
    device = Device(root, None, PosixDisk())
    device.settle()
    live = device.serving.live if device.model is not None else None
    served = live.ref.digest if live is not None else None
    assert served in allowed
    if live is not None:
        assert served in story.seeds, "serves what failed its golden set"
        answer = hosted(device.serving).infer({"x": ROW}).outputs["scores"]
        expected = layouts.reference(story.seeds[served], ROW)
        np.testing.assert_allclose(answer, expected, rtol=1e-4)


@pytest.mark.timeout(180 * SCALE)
def test_after_every_cut_the_device_boots_into_a_verified_slot(story, tmp_path, monkeypatch):
    monkeypatch.setattr(deployer, "JobRunner", InlineJobs)
    for name in ("fsync", "fdatasync"):  # these boots end by themselves
        monkeypatch.setattr(os, name, lambda _handle: None)
    folder = CrashFolder(str(story.state))
    may_serve = _may_serve(story.changes)
    cuts = boots = 0
    seen: set[int] = set()
    for number, change in enumerate(story.changes):
        if not folder.apply(change):
            continue
        cuts += 1
        chance = random.Random(number)
        for turn in range(SCALE):
            outcome = OUTCOMES[(cuts + turn) % len(OUTCOMES)]
            tree = folder.after_cut(outcome, chance.getrandbits(32))
            key = hash((tuple(tree.items()), frozenset(may_serve[number])))
            if key in seen:
                continue
            seen.add(key)
            boots += 1
            root = tmp_path / "cut"
            crashfs.write_out(tree, root)
            try:
                _boots(story, root, may_serve[number])
            except Exception as exc:
                where = f"cut {cuts} after {change.kind} {change.path}, {outcome}: {root}"
                raise AssertionError(where) from exc
            shutil.rmtree(root)
    print(f"cut points: {cuts}; different outcomes booted: {boots}")
    assert cuts > 200


@pytest.mark.parametrize("share", [0.6] if SCALE == 1 else [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_real_process_boots_after_a_cut(story, tmp_path, share):
    folder = CrashFolder(str(story.state))
    last = int(len(story.changes) * share)
    for change in story.changes[: last + 1]:
        folder.apply(change)
    agent = AgentProcess(tmp_path, "dev-1", 9)  # no broker: it must find its way alone
    crashfs.write_out(folder.after_cut("dropped", 0), agent.state)
    allowed = _may_serve(story.changes)[last]
    assert None not in allowed
    agent.start()
    try:
        wait_for(lambda: agent.infer("after")[0] == 200, what="serves again")
        active = agent.status()["models"]["meter"]["active"]["digest"]
        assert active in allowed
        assert agent.infer("after")[1]["model_version"] == str(story.seeds[active])
    finally:
        agent.kill()
