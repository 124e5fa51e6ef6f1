"""A fleet as the rollout core sees it: the world, not a mock of our code.

It holds what each device desires, runs and has counted; only assignments of the core and time
change it.
"""

import random

import msgspec

from edgekit.contracts.messages import Failure, ModelReport, SlotRef, VariantRef
from edgekit.contracts.release import Release
from edgekit.contracts.states import SlotState
from edgekit_fleet.rollout import core, spec
from edgekit_fleet.rollout.model import DeviceView, Evidence

DIGEST = {name: "sha256:" + char * 64 for name, char in (("v1", "1"), ("v2", "2"))}


def release(name):
    variant = VariantRef(digest=DIGEST[name], repository="meter", size=10)
    return Release(name=name, model="meter", version=name, variants={"x86-64-v3": variant})


def make_spec(waves=None, **changes):
    gate = spec.Gate(metric=spec.Metric.ACCURACY_DROP, max=0.1, n_min=50)
    waves = waves or (
        spec.Wave(name="quarter", percent=34.0, soak_s=10.0, timeout_s=60.0, gates=(gate,)),
        spec.Wave(name="all", percent=100.0, soak_s=10.0, timeout_s=60.0),
    )
    return spec.validate(
        msgspec.structs.replace(spec.RolloutSpec(name="roll", release="v2", waves=waves), **changes)
    )


class Fleet:
    def __init__(self, size=12, accuracy=None, labels=None):
        self.now = 1000.0
        self.rng = random.Random(5)
        self.accuracy = accuracy or {"v1": 0.97, "v2": 0.97}
        self.offline, self.refusing = set(), set()
        self.views = {
            f"d{i:02}": DeviceView(
                device=f"d{i:02}",
                labels=(labels or {}).get(i, {}),
                targets=("x86-64-v3",),
                online=True,
            )
            for i in range(size)
        }
        rollout = make_spec(waves=(spec.Wave(name="w", percent=100.0),))
        before = core.deployment(rollout, release("v1"), 0)
        for device in self.views:
            self.assign(device, msgspec.structs.replace(before, rollout="first"))
        self.act()

    def assign(self, device, deployment):
        view = self.views[device]
        self.views[device] = msgspec.structs.replace(view, deployment=deployment, gen=view.gen + 1)

    def act(self):
        """Every reachable device does what its document says; a refusing one rolls back."""
        for device, view in self.views.items():
            if device in self.offline or view.gen_observed == view.gen:
                continue
            wanted = view.deployment
            report = ModelReport(state=SlotState.EMPTY)
            if wanted is not None:
                variant = wanted.variants["x86-64-v3"].digest
                if device in self.refusing and variant == DIGEST["v2"]:
                    failure = Failure(reason="golden outputs differ", at=self.now)
                    report = msgspec.structs.replace(
                        view.report, state=SlotState.ROLLED_BACK, failed={variant: failure}
                    )
                else:
                    slot = SlotRef(
                        digest=variant, version="1", target="x86-64-v3",
                        release=wanted.release, rollout=wanted.rollout, wave=wanted.wave,
                    )  # fmt: skip
                    report = ModelReport(state=SlotState.CONFIRMED, active=slot)
            self.views[device] = msgspec.structs.replace(view, report=report, gen_observed=view.gen)

    def count(self, n=40):
        """Every reachable device answers ``n`` inferences and gets their labels."""
        for device, view in self.views.items():
            if device in self.offline or view.report is None or view.report.active is None:
                continue
            name = view.report.active.release
            right = sum(self.rng.random() < self.accuracy[name] for _ in range(n))
            side = "candidate" if name == "v2" else "other"
            old = getattr(view, side)
            new = Evidence(
                n=old.n + n,
                labelled=old.labelled + n,
                correct=old.correct + right,
                classes=(old.n + n,),
                confidence_sum=0.9 * (old.n + n),
            )
            self.views[device] = msgspec.structs.replace(view, **{side: new})

    def running(self, name):
        return {
            d for d, v in self.views.items() if v.report.active and v.report.active.release == name
        }
