"""Candidates beside what serves: begun, watched, fed and ended. Rules: `edgekit_runtime.beside`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from edgekit.contracts.errors import ResourceError
from edgekit.contracts.messages import ShadowReport
from edgekit.contracts.shadow import Shadow, ShadowMode
from edgekit.contracts.states import SlotState
from edgekit_runtime import beside, planner
from edgekit_runtime.counting import ShadowCounter
from edgekit_runtime.deployment import Deployment, Environment
from edgekit_runtime.hosted import Hosted
from edgekit_runtime.jobs import Done, JobRunner
from edgekit_runtime.kinds import Kind
from edgekit_runtime.machine import Event
from edgekit_runtime.monitors.windows import labels_for, shadow_labels
from edgekit_runtime.ports import Loaded, Replay
from edgekit_runtime.preparation import Preparation
from edgekit_runtime.record import BesideRecord, DeploymentRecord, ModelRecord, other_slot
from edgekit_runtime.region import Region
from edgekit_runtime.samples import Buffer
from edgekit_runtime.serving import Companion, Live

LOOK_S = 1.0  # between looks whether samples may be taken
PAUSE_S = 5.0  # without samples, before it is tried again
LATENCIES_MAX = 512  # of the newest answers, for the p99
log = logging.getLogger(__name__)


class _Standing(msgspec.Struct):
    counter: ShadowCounter
    companion: Companion
    share: float  # when nothing is suspended
    region: Region | None = None  # of what serves
    mark: int = 0  # in it: answers from here on are those with a candidate beside them
    before_s: float | None = None  # p99 without
    suspended: str = ""
    look_at: float = 0.0
    replaying: bool = False


class Besides:
    """Belongs to the control thread."""

    def __init__(
        self,
        env: Environment,
        kept: Deployment,
        hosted: Hosted,
        preparing: Preparation,
        jobs: JobRunner,
    ) -> None:
        self._env = env
        self._kept = kept
        self._hosted = hosted
        self._preparing = preparing
        self._jobs = jobs
        self._standing: dict[str, _Standing] = {}

    def begin(self, name: str) -> None:
        """The candidate goes beside what serves; again, after a start."""
        model = self._kept.model(name)
        candidate = model.candidate
        loaded = self._preparing.loaded(candidate) if candidate is not None else None
        if candidate is None:
            return
        shadow, split = model.policy.shadow, model.policy.split
        slot = other_slot(model.slot)
        if split is not None and loaded is not None:
            labels = labels_for(name, candidate, slot, loaded)
        else:
            labels = shadow_labels(name, candidate, slot)
        if model.state is SlotState.SELF_TEST:
            asked, missing = _asked(model, loaded)
            if not self._env.workers:
                missing = "no worker answers here ([serve] workers): there is none to stand beside"
            if missing:
                self._preparing.refuse(name, missing)
                return
            region = self._env.counting.begin(labels)
            self._kept.change(
                name,
                Event.SHADOW,
                "in the shadow" if split is None else "answers a share",
                beside=msgspec.structs.replace(asked, position=region.head),
                test_tries=model.policy.trial_tries,
                unproven=False,
            )
        else:
            region = self._env.counting.begin(labels)
        asked = self._kept.model(name).beside or BesideRecord()
        live = Live(loaded, region, candidate, slot) if loaded is not None else None
        share = shadow.share if shadow is not None else split.share if split is not None else 0.0
        companion = Companion(
            live, region, share, abs=asked.abs, rel=asked.rel, split=split is not None
        )
        if shadow is not None and shadow.mode is ShadowMode.REPLAY:
            self._preparing.drop(model)
            companion = msgspec.structs.replace(companion, live=None, buffer=_empty_buffer(shadow))
        now = self._env.clock.monotonic()
        counter = ShadowCounter(region, asked.position, now, asked.seconds)
        self._standing[name] = _Standing(counter, companion, share)
        self._hosted.serving(name).accompany(companion)

    def end(self, name: str) -> None:
        """Nothing of ``name`` is beside what serves any more."""
        standing = self._standing.pop(name, None)
        if standing is None:
            return
        companion = standing.companion
        if companion.split and companion.live is not None:
            self._preparing.release(companion.live.ref)  # the front has it answer what it has
        self._hosted.serving(name).accompany(None)

    def look(self) -> None:
        """Stop taking samples while the device cannot afford it, and go on when it can."""
        now = self._env.clock.monotonic()
        for name, standing in self._standing.items():
            shadow = self._kept.model(name).policy.shadow
            if shadow is None or now < standing.look_at or standing.replaying:
                continue
            standing.look_at = now + LOOK_S
            live = self._hosted.serving(name).live
            if live is None:
                continue
            if live.region is not standing.region:
                standing.region, standing.mark = live.region, live.region.head
                standing.before_s = beside.p99_s(_latencies_s(live.region, 0))
            with_it = beside.p99_s(_latencies_s(live.region, standing.mark))
            paused = bool(standing.suspended)
            before = standing.before_s
            late = None if paused else with_it
            why = beside.suspended(shadow, self._env.readings(), before, late)
            if paused and not why:
                standing.before_s = with_it or before
            if paused or why:
                standing.mark = live.region.head
            if why:
                standing.look_at = now + PAUSE_S
            self._suspend(name, standing, why)

    def _suspend(self, name: str, standing: _Standing, why: str) -> None:
        if why and not standing.suspended:
            log.warning("%s: no samples for the candidate: %s", name, why)
        standing.suspended = why
        self._share(name, standing, 0.0 if why else standing.share)

    def _share(self, name: str, standing: _Standing, share: float) -> None:
        if standing.companion.share != share:
            standing.companion = msgspec.structs.replace(standing.companion, share=share)
            self._hosted.serving(name).accompany(standing.companion)

    def replay(self, name: str) -> None:
        """Run the candidate on what was collected; then collect anew."""
        model, standing = self._kept.model(name), self._standing.get(name)
        candidate, shadow = model.candidate, model.policy.shadow
        if candidate is None or standing is None or shadow is None or self._jobs.busy:
            return
        buffer, companion = standing.companion.buffer, standing.companion
        if buffer is None:
            return
        standing.replaying = True
        self._share(name, standing, 0.0)
        order = Replay(buffer.descriptor, companion.region, companion.abs, companion.rel)
        host = self._env.host
        unloaded = self._hosted.make_way(name, model.policy)

        def work() -> None:
            unloaded()
            host.replay(name, candidate, model.policy, order)

        def finish(done: Done) -> None:
            # `buffer` is named here so that its descriptor lives as long as the job.
            log.info("%s: %d samples replayed", name, buffer.samples)
            if self._standing.get(name) is not standing:
                return
            standing.replaying = False
            if done.error is not None and not isinstance(done.error, ResourceError):
                if not self._preparing.outside(name, candidate, done.error):
                    self.end(name)
                    self._preparing.refuse(name, f"in the shadow: {done.error.message}")
                return
            if done.error is not None:  # no room for it now: the same samples later
                log.warning("%s: replayed later: %s", name, done.error.message)
                self._preparing.pause(candidate)
                return
            fresh = msgspec.structs.replace(
                companion, share=standing.share, buffer=_empty_buffer(shadow)
            )
            standing.companion = fresh
            self._hosted.serving(name).accompany(fresh)

        self._jobs.start(f"replay-{name}", work, finish)

    # --- what is -------------------------------------------------------------------------------

    def standing(self) -> Mapping[str, planner.Standing]:
        """What the planner must know."""
        now = self._env.clock.monotonic()
        found = {}
        for name, standing in self._standing.items():
            seen = standing.counter.read(now)
            asked = self._kept.model(name).policy.shadow
            buffer = standing.companion.buffer
            collected = False
            if buffer is not None and asked is not None and buffer.samples:
                enough = buffer.samples >= max(1, asked.inferences_min - seen.n)
                collected = enough or buffer.dropped > 0
            found[name] = planner.Standing(seen, collected)
        return found

    def reports(self) -> Mapping[str, ShadowReport]:
        """What the manager is told, by model."""
        now = self._env.clock.monotonic()
        found = {}
        for name, standing in self._standing.items():
            seen, asked = standing.counter.read(now), self._kept.model(name).beside
            found[name] = ShadowReport(
                n=seen.n,
                agreed=seen.agreed,
                errors=seen.errors,
                nan=seen.nan,
                dropped=seen.dropped,
                seconds=seen.seconds,
                agreement_min=asked.agreement_min if asked is not None else None,
                suspended=standing.suspended,
            )
        return found

    def checkpoint(self, record: DeploymentRecord) -> DeploymentRecord:
        """``record`` with the time that candidates have stood beside what serves."""
        now = self._env.clock.monotonic()
        for name, standing in self._standing.items():
            model = record.models.get(name)
            if model is None or model.beside is None:
                continue
            seconds = standing.counter.read(now).seconds
            asked = msgspec.structs.replace(model.beside, seconds=seconds)
            record = record.with_model(name, msgspec.structs.replace(model, beside=asked))
        return record


def _asked(model: ModelRecord, loaded: Loaded | None) -> tuple[BesideRecord, str]:
    """What the candidate is asked; why nothing can be, else empty."""
    shadow = model.policy.shadow
    if shadow is None:
        return BesideRecord(), ""
    if shadow.agreement_min is not None:
        asked = BesideRecord(agreement_min=shadow.agreement_min, abs=shadow.abs, rel=shadow.rel)
        return asked, ""
    expected = loaded.expectation if loaded is not None else None
    if expected is None:
        why = "policy.shadow has no agreement_min, and the bundle does not say what to expect"
        return BesideRecord(), why
    least = expected.agreement_min
    return BesideRecord(agreement_min=least, abs=expected.abs, rel=expected.rel), ""


def _empty_buffer(shadow: Shadow) -> Buffer:
    try:
        return Buffer.create(shadow.replay_bytes_max)
    except OSError as exc:
        raise ResourceError(f"no memory for samples: {exc.strerror}") from exc


def _latencies_s(region: Region, first: int) -> list[float]:
    head = region.head
    found = region.records(max(first, head - LATENCIES_MAX, 0), head)
    answered = found["latency_us"][found["kind"] == Kind.PREDICTION]
    return [float(value) / 1e6 for value in answered]
