"""Executes the planner's steps over the deployment record, the store and what serves.

Every change is persisted before it takes effect: a crash at any point leaves a record from which
the planner finds its way. Slow steps run on a job thread; their results are matched with the
candidate they were meant for and dropped when that has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from edgekit.contracts.errors import ResourceError, UnavailableError
from edgekit.contracts.messages import Desired, ModelReport, SlotRef
from edgekit.contracts.states import SlotState
from edgekit.engine.ports import EngineAwayError
from edgekit_runtime import planner, steps
from edgekit_runtime.besides import Besides
from edgekit_runtime.deployment import Change, Deployment, Environment
from edgekit_runtime.hosted import Hosted
from edgekit_runtime.jobs import Done, JobRunner
from edgekit_runtime.lending import Lending
from edgekit_runtime.machine import Event
from edgekit_runtime.monitors.figures import Burns, TrialCounter, latency_before
from edgekit_runtime.planner import Facts
from edgekit_runtime.ports import Loaded
from edgekit_runtime.preparation import Preparation, discard
from edgekit_runtime.record import DeploymentRecord, ModelRecord, activation, reversion
from edgekit_runtime.region import Region
from edgekit_runtime.serving import Serving

TIDY_S = 10.0  # between attempts to remove what is not needed: an image may still be in use
STEPS_MAX = 256  # per call; a plan that never settles would starve telemetry
log = logging.getLogger(__name__)


class Deployer:
    """Belongs to the control thread."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._kept = Deployment(env)
        self._clean_start = self.record.clean
        self._hosted = Hosted(env)
        self._lending = Lending(env, self._hosted)
        self._trials: dict[str, TrialCounter] = {}
        self._burns = Burns(env.counting.beside)
        self._jobs = JobRunner(env.wake)
        self._preparing = Preparation(env, self._kept, self._hosted, self._jobs)
        self._besides = Besides(env, self._kept, self._hosted, self._preparing, self._jobs)
        self._preparing.withdrawn = self._besides.end
        self._tidy_at = env.clock.monotonic()
        self._desired: tuple[Desired, str] | None = None
        for name in self.record.models:
            self._hosted.serving(name)

    @property
    def servings(self) -> Mapping[str, Serving]:
        """What answers, by model. May be read by any thread."""
        return self._hosted.servings

    @property
    def workers_ended(self) -> int:
        """Processes that held a model and ended untold."""
        return self._hosted.ended

    @property
    def workers_rss(self) -> dict[str, int]:
        """Resident bytes of the processes that hold a model, by model."""
        return self._hosted.rss_bytes()

    @property
    def record(self) -> DeploymentRecord:
        """What the device knows, as persisted."""
        return self._kept.record

    def reports(self) -> dict[str, ModelReport]:
        """What the manager is told, by model."""
        beside = self._besides.reports()
        return {
            name: model.report(self._preparing.in_flight(name), beside.get(name))
            for name, model in self.record.models.items()
        }

    def offer(self, desired: Desired, digest: str) -> None:
        """A desired state arrived; whether it is taken is the planner's to say."""
        self._desired = (desired, digest)

    def advance(self) -> bool:
        """Do what is to be done now; whether anything happened."""
        changed = self._jobs.take()
        changed |= self._hosted.take_ends()
        changed |= self._lending.hear(self.record)
        self._besides.look()
        for _ in range(STEPS_MAX):
            desired, self._desired = self._desired, None
            plan = planner.plan(self.record, desired, self._facts())
            if not plan:
                break
            changed = True
            for step in plan:
                self._execute(step)
        self._lending.tell(self.record)
        if changed and not self._jobs.busy:
            self._env.store.collect([*self.record.bundles(), *self._env.counting.leased()])
        return changed

    def checkpoint(self, *, clean: bool = False) -> None:
        """Persist the time spent on trial; ``clean`` marks an orderly stop."""
        record = self.record
        for name, trial in self._trials.items():
            model = record.models.get(name)
            if model is not None and model.state is SlotState.TRIAL:
                seconds = trial.read(self._env.clock.monotonic()).seconds
                record = record.with_model(name, msgspec.structs.replace(model, trial_s=seconds))
        record = self._besides.checkpoint(record)
        if record is not self.record or clean != record.clean:
            self._kept.save(msgspec.structs.replace(record, clean=clean))

    # --- what is -------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        now = self._env.clock.monotonic()
        images = self._env.images
        untidy = images is not None and (images.untidy or bool(self.record.stale_images()))
        return Facts(
            targets=self._env.targets,
            loaded=self._hosted.loaded(),
            ready=self._preparing.ready,
            busy=self._jobs.busy,
            waits=self._preparing.waits(),
            trials={name: trial.read(now) for name, trial in self._trials.items()},
            lately=self._burns.read(now, self.record.models, self.servings),
            ends=self._hosted.ends(),
            lost=self._hosted.lost(),
            beside=self._besides.standing(),
            fallen=self._preparing.fallen(),
            clean_start=self._clean_start,
            containers=images is not None,
            untidy=untidy and now >= self._tidy_at,
        )

    # --- what to do ----------------------------------------------------------------------------

    def _execute(self, step: steps.Step) -> None:  # noqa: C901, PLR0912 - one branch a step
        if isinstance(step, steps.Adopt):
            self._adopt(step)
        elif isinstance(step, steps.Relabel):
            self._relabel(step)
        elif isinstance(step, steps.Remove):
            self._remove(step)
        elif isinstance(step, steps.Observe):
            self._kept.observe(step)
        elif isinstance(step, steps.Fetch):
            self._preparing.fetch(step.model)
        elif isinstance(step, steps.Verify):
            self._preparing.verify(step.model)
        elif isinstance(step, steps.BeginTest):
            self._kept.change(step.model, Event.TEST)
        elif isinstance(step, steps.SelfTest):
            self._preparing.self_test(step.model)
        elif isinstance(step, steps.StandBeside):
            self._besides.begin(step.model)
        elif isinstance(step, steps.Replay):
            self._besides.replay(step.model)
        elif isinstance(step, steps.Activate):
            self._activate((step,))
        elif isinstance(step, steps.ActivateGroup):
            self._activate(step.members)
        elif isinstance(step, steps.Load):
            self._load(step)
        elif isinstance(step, steps.SpendTry):
            tries = self._kept.model(step.model).tries
            self._kept.change(step.model, None, tries=tries - 1)
            self._hosted.charged(step.model)
        elif isinstance(step, steps.Confirm):
            self._trials.pop(step.model, None)
            self._kept.change(
                step.model, Event.CONFIRM, "trial passed", confirmed=True, tries=0, unproven=False
            )
        elif isinstance(step, steps.MarkUnproven):
            self._kept.change(step.model, None, unproven=True)
        elif isinstance(step, steps.Refuse):
            self._preparing.refuse(step.model, step.reason)
        elif isinstance(step, steps.Revert):
            self._revert(step.model, step.reason)
        elif isinstance(step, steps.Tidy):
            self._tidy()
        else:
            from typing_extensions import assert_never  # noqa: PLC0415 - 3 ms of a start

            assert_never(step)

    def _adopt(self, step: steps.Adopt) -> None:
        model = self._kept.model(step.model)
        digest = step.candidate.digest
        self._hosted.serving(step.model)
        self._withdraw(step.model)
        self._preparing.begin(step.candidate)
        self._kept.change(
            step.model,
            Event.ASSIGN,
            candidate=step.candidate,
            repository=step.repository,
            policy=step.policy,
            retry_token=step.retry_token,
            test_tries=step.policy.trial_tries,
            failed={key: value for key, value in model.failed.items() if key != digest},
            fetched_bytes=0,
            beside=None,
            unproven=model.unproven and model.state is not SlotState.SHADOW,
        )

    def _withdraw(self, name: str) -> None:
        """Its candidate is not wanted any more."""
        self._besides.end(name)
        self._preparing.drop(self._kept.model(name))

    def _relabel(self, step: steps.Relabel) -> None:
        model = self._kept.model(step.model)
        self._withdraw(step.model)
        self._kept.change(
            step.model,
            Event.RESUME if model.confirmed else Event.RESUME_TRIAL,
            "already active",
            active=step.active,
            candidate=None,
            policy=step.policy,
            retry_token=step.retry_token,
            fetched_bytes=0,
            beside=None,
        )
        live = self._hosted.serving(step.model).live
        if live is not None and live.ref.content == step.active.content:
            region = self._serve(step.model, live.loaded)
            trial = self._trials.get(step.model)
            if trial is not None:
                trial.move(region, self._env.clock.monotonic())

    def _remove(self, step: steps.Remove) -> None:
        self._withdraw(step.model)
        self._hosted.serving(step.model).stop()
        self._trials.pop(step.model, None)
        self._kept.change(
            step.model,
            Event.REMOVE,
            "no longer desired",
            active=None,
            fallback=None,
            candidate=None,
            confirmed=False,
            beside=None,
            flip=0,
        )

    def _activate(self, members: Sequence[steps.Activate]) -> None:
        """One write, then each switches: after a power cut all serve, or none."""
        flip = self.record.gen if len(members) > 1 else 0
        changes, taken = [], []
        for step in members:
            model = self._kept.model(step.model)
            if model.candidate is None:
                return
            event = Event.REINSTATE if step.proven else Event.ACTIVATE
            why = "proven here before" if step.proven else "on trial"
            found = activation(model, proven=step.proven, flip=flip)
            changes.append(Change(step.model, event, why, found))
            taken.append((step, model.candidate))
        loaded = {step.model: self._preparing.take(ref) for step, ref in taken}
        self._kept.change_all(changes)
        for step in members:
            self._hosted.forget(step.model)
            region = self._serve(step.model, loaded[step.model])
            self._besides.end(step.model)
            self._trials.pop(step.model, None)
            if not step.proven:
                self._begin_trial(step.model, region)

    def _load(self, step: steps.Load) -> None:
        model = self._kept.model(step.model)
        active = model.active
        if active is None or self._jobs.busy:
            return
        if step.spend_try:
            self._kept.change(step.model, None, tries=model.tries - 1)
        if self.record.clean:
            self._kept.save(msgspec.structs.replace(self.record, clean=False))

        host = self._env.host
        # With memory for two, what fails on trial answers on until its fallback is loaded.
        unloaded = self._hosted.make_way(step.model, model.policy)

        def work() -> Loaded:
            unloaded()
            # Without it no second copy is ever loaded for the golden set: now is the time.
            tested = not model.policy.overlap
            return host.load(step.model, active, model.policy, tested=tested)

        self._jobs.start(
            f"load-{step.model}", work, lambda done: self._loaded(step, model, active, done)
        )

    def _loaded(self, step: steps.Load, before: ModelRecord, active: SlotRef, done: Done) -> None:
        now = self._kept.model(step.model)
        if now.active is None or now.active.content != active.content:
            discard(done)
        elif isinstance(done.error, (ResourceError, UnavailableError)):
            if step.spend_try and isinstance(done.error, EngineAwayError):
                self._kept.change(step.model, None, tries=before.tries)  # it was not tried
            self._hosted.could_not_start(step.model, done.error)
        elif done.error is not None:
            if active.image is None:
                self._env.store.discard_damaged(active.digest)
            self._revert(step.model, f"cannot be loaded: {done.error.message}")
        else:
            self._resume(step.model, self._serve(step.model, done.value))

    def _resume(self, name: str, region: Region) -> None:
        """A trial goes on where its process, or the agent's, had ended."""
        now, model = self._env.clock.monotonic(), self._kept.model(name)
        trial = self._trials.get(name)
        if trial is not None:
            trial.move(region, now)
        elif not model.confirmed:
            self._begin_trial(name, region, before_s=model.trial_s, fresh=False)

    def _begin_trial(
        self, name: str, region: Region, *, before_s: float = 0.0, fresh: bool = True
    ) -> None:
        proven = self._kept.model(name).fallback
        regions = self._env.counting.shelf(name).regions()
        self._trials[name] = TrialCounter(
            region,
            self._env.clock.monotonic(),
            throttled=self._env.throttled,
            before=latency_before(regions, proven.digest) if proven is not None else (),
            before_s=before_s,
            beside=self._env.counting.beside,
            fresh=fresh,
        )

    def _revert(self, name: str, reason: str) -> None:
        """Back to the fallback, with whatever changed together with it."""
        flip = self._kept.model(name).flip
        mates = [n for n, m in self.record.models.items() if flip and m.flip == flip and n != name]
        found = [self._reversion(name, reason)]
        found += [self._reversion(n, f"with {name} of its group: {reason}", name) for n in mates]
        changes = [change for change in found if change is not None]
        if not changes:
            return
        self._kept.change_all(changes)
        for change in changes:
            self._trials.pop(change.model, None)
            self._hosted.forget(change.model)
            if self._kept.model(change.model).active is None:
                self._hosted.serving(change.model).stop()
            # Else what fails keeps answering until the planner has the fallback loaded.

    def _reversion(self, name: str, reason: str, cause: str = "") -> Change | None:
        model = self._kept.model(name)
        if model.active is None:
            return None
        failed = self._kept.quarantine(model, model.active, reason, shared=bool(cause))
        if model.fallback is not None:
            return Change(name, Event.REVERT, reason, {**reversion(model), "failed": failed})
        preparing = model.state in planner.PREPARING and model.candidate is not None
        event = Event.REVERT if preparing else Event.STRAND
        nothing = {"active": None, "confirmed": False, "flip": 0, "failed": failed}
        return Change(name, event, reason, nothing)

    def _tidy(self) -> None:
        images, stale = self._env.images, self.record.stale_images()
        if images is None or self._jobs.busy:
            return
        self._tidy_at = self._env.clock.monotonic() + TIDY_S

        def finish(done: Done) -> None:
            if done.error is not None:
                log.warning("tidying containers and images, later again: %s", done.error.message)
                return
            gone = set(stale) & set(self.record.stale_images())
            left = tuple(digest for digest in self.record.images if digest not in gone)
            if left != self.record.images:
                self._kept.save(msgspec.structs.replace(self.record, images=left))

        self._jobs.start("tidy", lambda: images.tidy(stale), finish)

    def _serve(self, name: str, loaded: Loaded) -> Region:
        return self._hosted.serve(name, self._kept.model(name), loaded)
