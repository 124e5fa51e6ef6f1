"""A device with two models that change together."""

from __future__ import annotations

import numpy as np
from agentkit.device import POLICY, Device
from agentkit.hosts import hosted

from edgekit.contracts.messages import Deployment, Desired, VariantRef

NAMES = ("door", "meter")


class Pair(Device):
    def order(self, gen: int, digests, release: str, *, group=NAMES, policy=POLICY) -> None:
        deployments = {
            name: Deployment(
                rollout="o",
                wave=0,
                release=release,
                variants={"x86-64-v3": VariantRef(digest=digest, repository="m", size=1)},
                policy=policy,
                group=group,
            )
            for name, digest in zip(NAMES, digests, strict=True)
        }
        self.deployer.offer(Desired(gen=gen, deployments=deployments), "sha256:x")
        self.settle()

    def ask(self, count: int, value: float = 0.0, names=NAMES) -> None:
        for name in names:
            serving = self.deployer.servings.get(name)
            if serving is not None and serving.live is not None:
                for _ in range(count):
                    hosted(serving).infer({"x": np.full((1, 4), value, np.float32)})
        self.settle()

    def models(self):
        return [self.deployer.record.models.get(name) for name in NAMES]

    def actives(self) -> tuple[str | None, ...]:
        return tuple(m.active.digest if m and m.active else None for m in self.models())

    def served(self) -> tuple[str | None, ...]:
        found = (self.deployer.servings.get(name) for name in NAMES)
        return tuple(s.live.ref.digest if s and s.live else None for s in found)
