"""A whole device in the test's own process: the code that boots, without threads or network."""

from __future__ import annotations

import numpy as np
from agentkit.fetchers import LocalFetcher
from agentkit.hosts import LocalHost, hosted

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import Deployment, Desired, Policy, VariantRef
from edgekit_runtime.agent import emit
from edgekit_runtime.beside import Readings
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.counting import Counting
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.deployment import Environment
from edgekit_runtime.jobs import Done
from edgekit_runtime.spool import Spool
from edgekit_runtime.store import BlobStore
from edgekit_runtime.verifier import DigestVerifier

POLICY = Policy(confirm_inferences_min=3, confirm_s_min=0.0, error_min_n=3)


class InlineJobs:
    """Runs a slow step at once, so that the cut lands in the caller."""

    def __init__(self, _wake) -> None:
        self._pending = None

    @property
    def busy(self) -> bool:
        return self._pending is not None

    def start(self, _name, work, finish) -> None:
        try:
            self._pending = (finish, Done(work(), None))
        except EdgekitError as exc:
            self._pending = (finish, Done(None, exc))

    def take(self) -> bool:
        if self._pending is None:
            return False
        (finish, done), self._pending = self._pending, None
        finish(done)
        return True


class Device:
    def __init__(
        self, root, layout, disk, *, applications=None, readings=Readings, workers=True
    ) -> None:
        """``layout`` None: there is no artifact server."""
        clock = SystemClock()
        self.spool = Spool.open(disk, root / "spool", clock)
        self.counting = Counting(disk, root / "regions", clock, self.spool)
        self.deployer = Deployer(
            Environment(
                disk=disk,
                clock=clock,
                store=BlobStore(disk, root, DigestVerifier()),
                counting=self.counting,
                state_dir=root,
                targets=("x86-64-v3",),
                host=LocalHost(root),
                fetcher=lambda _url: LocalFetcher(layout) if layout else None,
                emit=lambda record: emit(self.spool, record),
                wake=lambda: None,
                serving_changed=lambda _serving: None,
                applications=applications,
                readings=readings,
                workers=workers,
            )
        )

    def settle(self) -> None:
        while self.deployer.advance():
            pass

    def deploy(self, gen: int, digest: str, release: str, policy: Policy = POLICY) -> None:
        variant = VariantRef(digest=digest, repository="m", size=1)
        deployment = Deployment(
            rollout="o",
            wave=0,
            release=release,
            variants={"x86-64-v3": variant},
            policy=policy,
        )
        self.deployer.offer(Desired(gen=gen, deployments={"meter": deployment}), "sha256:x")
        self.settle()

    def infer(self, count: int) -> None:
        for _ in range(count):
            hosted(self.serving).infer({"x": np.zeros((1, 4), np.float32)})
        self.settle()

    @property
    def serving(self):
        return self.deployer.servings["meter"]

    @property
    def model(self):
        return self.deployer.record.models.get("meter")
