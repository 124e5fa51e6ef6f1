"""Do the rollout gates stop a release that is wrong in the field, and never one that is not?

The demo's models, really trained, answer real held-out samples on simulated devices; the rollout
core and its gates are the product's, with the demo's specs (nothing is tuned for the outcome: both
directions run through the same spec). Over the seeds, v3 must always be stopped in its canary wave,
and v2', identical to what runs, never. Peer: the same rollout without quality gates, as systems do
that gate on "install succeeded".
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import harness
import msgspec
import numpy as np
import onnxruntime

from edgekit.cli.demo import data, plan, train
from edgekit.contracts.messages import ModelReport, SlotRef, VariantRef
from edgekit.contracts.release import Release
from edgekit.contracts.states import SlotState
from edgekit_fleet.rollout import core, spec
from edgekit_fleet.rollout.model import DeviceView, Evidence, Observation, RolloutState, Status

SEEDS = 20
TICKS_MAX = 400
TICK_S = 1.0
CONFIRM_TICKS = 3
TARGET = "x86-64-v3"


def answers(model: plan.ModelPlan, meters: data.MeterData, folder: Path) -> np.ndarray:
    """Class probabilities of a model for every field sample, shape (n, 2)."""
    path = folder / f"{model.release}.onnx"
    made_from = meters.with_gain(model.gain)
    train.train(made_from.train, path, kernels=model.kernels, seed=model.seed)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {train.INPUT: meters.field.x})[0])


def release(name: str) -> Release:
    digest = "sha256:" + name.encode().hex().ljust(64, "0")
    variant = VariantRef(digest=digest, repository=plan.MODEL, size=1)
    return Release(name=name, model=plan.MODEL, version=name, variants={TARGET: variant})


class World:
    """Twelve devices that confirm some seconds after an assignment and answer steadily."""

    def __init__(self, seed: int, outputs: dict[str, np.ndarray], labels: np.ndarray) -> None:
        self.rng = np.random.default_rng(seed)
        self.outputs, self.labels, self.now = outputs, labels, 1000.0
        self.running = dict.fromkeys(plan.devices(), "meter-v2")
        self.wanted: dict[str, tuple[float, str]] = {}
        self.views = {
            device: DeviceView(device=device, labels=found, targets=(TARGET,), online=True)
            for device, found in plan.devices().items()
        }

    def assign(self, device: str, name: str) -> None:
        self.wanted[device] = (self.now + CONFIRM_TICKS * TICK_S, name)

    def tick(self) -> None:
        self.now += TICK_S
        for device, (when, name) in list(self.wanted.items()):
            if self.now >= when:
                self.running[device] = name
                del self.wanted[device]
        for device, name in self.running.items():
            view = self.views[device]
            slot = SlotRef(
                digest=release(name).variants[TARGET].digest,
                version=name,
                target=TARGET,
                release=name,
                rollout=name,
                wave=0,
            )
            self.views[device] = msgspec.structs.replace(
                view, report=ModelReport(state=SlotState.CONFIRMED, active=slot)
            )

    def count(self, candidate: str) -> None:
        """One second of traffic on every device, half of it labelled."""
        for device, name in self.running.items():
            picks = self.rng.integers(0, len(self.labels), int(plan.RATE_PER_DEVICE * TICK_S))
            outputs = self.outputs[name][picks]
            known = self.rng.random(len(picks)) < plan.LABEL_SHARE
            chosen = outputs.argmax(axis=1)
            side = "candidate" if name == candidate else "other"
            old: Evidence = getattr(self.views[device], side)
            classes = np.bincount(chosen, minlength=2) + np.asarray(old.classes or (0, 0))
            new = Evidence(
                n=old.n + len(picks),
                labelled=old.labelled + int(known.sum()),
                correct=old.correct + int((chosen == self.labels[picks])[known].sum()),
                confidence_sum=old.confidence_sum + float(outputs.max(axis=1).sum()),
                classes=tuple(int(number) for number in classes),
            )
            self.views[device] = msgspec.structs.replace(self.views[device], **{side: new})


def run(world: World, rollout: spec.RolloutSpec, candidate: str) -> RolloutState:
    """Drive the product's core to the end of the rollout."""
    state = core.initial(rollout, world.now)
    soaking: float | None = None
    for _ in range(TICKS_MAX):
        if state.status in core.TERMINAL:
            break
        seen = Observation(devices=dict(world.views))
        state, assignments = core.step(rollout, release(candidate), state, seen, world.now)
        for each in assignments:
            world.views[each.device] = msgspec.structs.replace(
                world.views[each.device], deployment=each.deployment
            )
            world.assign(each.device, each.deployment.release if each.deployment else "meter-v2")
        if core.soak_began(state) != soaking:
            soaking = core.soak_began(state)
            for device, view in world.views.items():  # evidence counts from the soak's start
                world.views[device] = msgspec.structs.replace(
                    view, candidate=Evidence(), other=Evidence()
                )
        world.tick()
        if soaking is not None:
            world.count(candidate)
    return state


def started(seed: int, outputs: dict[str, np.ndarray], labels: np.ndarray) -> World:
    """A fleet that runs v2."""
    world = World(seed, outputs, labels)
    rollout = spec.parse(json.dumps(plan.rollout(plan.MODELS[1])).encode())
    before = core.deployment(rollout, release("meter-v2"), 0)
    for device, view in world.views.items():
        world.views[device] = msgspec.structs.replace(view, deployment=before)
    world.tick()
    return world


def with_name(document: dict, name: str, *, gated: bool = True) -> spec.RolloutSpec:
    changed = {**document, "name": name, "release": name}
    if not gated:
        changed["waves"] = [{**wave, "gates": []} for wave in document["waves"]]
    return spec.parse(json.dumps(changed).encode())


def main() -> int:
    meters = data.load(data.cache_folder())
    with tempfile.TemporaryDirectory() as folder:
        outputs = {m.release: answers(m, meters, Path(folder)) for m in plan.MODELS}
    outputs["meter-v2b"] = outputs["meter-v2"]
    document = plan.rollout(plan.MODELS[2])
    tallies: dict[str, list[RolloutState]] = {"v2'": [], "v3": [], "v3, install-only": []}
    for seed in range(SEEDS):
        cases = (("v2'", "meter-v2b", True), ("v3", "meter-v3", True))
        for case, name, gated in (*cases, ("v3, install-only", "meter-v3", False)):
            world = started(seed, outputs, meters.field.y)
            rollout = with_name(document, f"{name}-{seed}", gated=gated)
            tallies[case].append(run(world, rollout, name))
    stopped = {
        case: sum(state.status is Status.ROLLED_BACK for state in states)
        for case, states in tallies.items()
    }
    exposed = {
        case: max(len(state.exposed) for state in states) for case, states in tallies.items()
    }
    seconds = [
        (s.waves[0].finished or 0.0) - (s.waves[0].soak_started or 0.0) for s in tallies["v3"]
    ]
    finished = sum(state.status is Status.SUCCEEDED for state in tallies["v2'"])
    peer = "install-only gates"
    rows = [
        harness.Row(
            "identical v2'", "stopped", stopped["v2'"], f"0 of {SEEDS}", stopped["v2'"] == 0
        ),
        harness.Row(
            "identical v2'", "reached every device", finished, f"{SEEDS} of {SEEDS}",
            finished == SEEDS,
        ),
        harness.Row(
            "v3, wrong in the field", "stopped", stopped["v3"], f"{SEEDS} of {SEEDS}",
            stopped["v3"] == SEEDS, peer, stopped["v3, install-only"],
        ),
        harness.Row(
            "v3, wrong in the field", "devices exposed, most", exposed["v3"], "4 of 12",
            exposed["v3"] == 4, peer, exposed["v3, install-only"],
            exposed["v3"] / exposed["v3, install-only"],
        ),
        harness.Row(
            "v3, wrong in the field", "seconds of soak until stopped, median",
            float(np.median(seconds)), "<= 10", float(np.median(seconds)) <= 10.0,
        ),
    ]  # fmt: skip
    title = "Do the gates stop the wrong release, and only that one?"
    return 0 if harness.write("rollout_gates", title, rows, f"{SEEDS} seeds.") else 1


if __name__ == "__main__":
    sys.exit(main())
