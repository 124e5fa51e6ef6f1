"""Sessions, kills, agents that come and go, generations: every answered call counts exactly once.

Hypothesis interleaves them; beside the real parts runs the simplest model there is: one number.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from agentkit import layouts
from agentkit.embedding import ROW, Host, crash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgekit.contracts.frames import Lane
from edgekit.contracts.messages import Policy
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import leases

SESSIONS_MAX = 4
# On trial for ever, and patient: what is looked at here is counting.
POLICY = Policy(trial_tries=10_000, confirm_inferences_min=10**9)


class Embedding(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        writer = layouts.LayoutWriter(self.folder / "layout")
        self.bundles = [writer.add(seed=seed, version=str(seed)) for seed in (1, 2, 3)]
        self.layout = writer.root
        self.host: Host | None = Host(self.folder / "state", self.layout)
        self.sessions = []
        self.answered = self.gen = self.kills = 0
        self.deploy(0)

    def teardown(self) -> None:
        for session in self.sessions:
            session.close()
        if self.host is not None:
            self.host.applications.close()
            self.host.loop.close()
        shutil.rmtree(self.folder)

    @precondition(lambda self: self.host is not None)
    @rule(number=st.integers(0, 2))
    def deploy(self, number: int) -> None:
        self.gen += 1
        self.host.device.deploy(self.gen, self.bundles[number], f"r{self.gen}", POLICY)

    @precondition(lambda self: self.host is not None and len(self.sessions) < SESSIONS_MAX)
    @rule()
    def open(self) -> None:
        self.sessions.append(self.host.open())

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, SESSIONS_MAX - 1), count=st.integers(1, 40))
    def infer(self, which: int, count: int) -> None:
        session = self.sessions[which % len(self.sessions)]
        for number in range(count):
            assert session.infer(ROW, request_id=f"{self.answered}-{number}").counted
        self.answered += count

    @precondition(lambda self: self.host is not None)
    @rule()
    def turn(self) -> None:
        self.host.turn()
        self.host.device.counting.drain()
        self.host.device.counting.retire()

    @precondition(lambda self: self.sessions)
    @rule(which=st.integers(0, SESSIONS_MAX - 1), orderly=st.booleans())
    def end(self, which: int, orderly: bool) -> None:
        session = self.sessions.pop(which % len(self.sessions))
        session.close() if orderly else crash(session)

    @precondition(lambda self: self.host is not None)
    @rule()
    def agent_dies(self) -> None:
        self.host.die()
        self.host = None

    @precondition(lambda self: self.host is None)
    @rule()
    def agent_starts(self) -> None:
        self.host = Host(self.folder / "state", self.layout)
        self.host.device.settle()
        for session in self.sessions:
            session._tether._retry_at = 0.0  # it is time to look for an agent

    @invariant()
    def no_region_has_two_writers(self) -> None:
        mine = [session._held.core.place.region.region for session in self.sessions]
        assert len(set(mine)) == len(mine)

    @invariant()
    def what_is_in_use_stays(self) -> None:
        if self.host is None:
            return
        regions = {region.region: region for region in self.host.regions()}
        for session in self.sessions:
            region = regions[session._held.core.place.region.region]
            assert leases.held(region.path)
            digest = session._held.core.predictor.bundle.digest
            reader = LayoutReader(self.host.root)
            assert all(reader.blob_path(b.digest).exists() for b in reader.manifest(digest).layers)

    @invariant()
    def produced_is_answered(self) -> None:
        if self.host is not None:
            counting = self.host.device.counting
            assert counting.produced() == self.answered
            stored = sum(window.n for window in self.host.device.spool.stored(Lane.HEALTH))
            assert stored + counting.undrained() == self.answered


TestEmbedding = Embedding.TestCase
TestEmbedding.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
