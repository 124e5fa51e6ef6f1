"""What happens to a candidate before it takes over: fetched, verified, self-tested, or refused.

Bundles come from the artifact server into the blob store, images through the container engine. Slow
work runs on the job thread; its result is dropped when the candidate has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from edgekit.contracts.errors import EdgekitError, ResourceError, UnavailableError
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.states import SlotState
from edgekit.engine.ports import EngineAwayError
from edgekit_runtime.deployment import Change, Deployment, Environment
from edgekit_runtime.downloads import Downloads, Meter, Metered
from edgekit_runtime.errors import DeltaAwaitedError, UnsuitableError
from edgekit_runtime.hosted import Hosted
from edgekit_runtime.jobs import Done, JobRunner
from edgekit_runtime.machine import Event
from edgekit_runtime.ports import Loaded
from edgekit_runtime.record import ModelRecord
from edgekit_runtime.store import Fetched
from edgekit_runtime.supervision import Ending, EndKind


class Preparation:
    """Belongs to the control thread."""

    def __init__(self, env: Environment, kept: Deployment, hosted: Hosted, jobs: JobRunner) -> None:
        self._env = env
        self._kept = kept
        self._hosted = hosted
        self._jobs = jobs
        self._attempts = Downloads(env.clock)
        self._ready: dict[str, Loaded] = {}
        self._meters: dict[str, Meter] = {}
        self.withdrawn: Callable[[str], None] = lambda _name: None  # called when one is refused

    @property
    def ready(self) -> frozenset[str]:
        """Contents that are loaded and passed their self-test."""
        return frozenset(self._ready)

    def in_flight(self, name: str) -> int:
        """Bytes that the download in progress has transferred."""
        meter = self._meters.get(name)
        return meter.count if meter else 0

    def waits(self) -> frozenset[str]:
        """Models whose next attempt is not due."""
        return frozenset(
            name
            for name, model in self._kept.record.models.items()
            if model.candidate is not None and self._attempts.waiting(model.candidate.content)
        )

    def begin(self, ref: SlotRef) -> None:
        """``ref`` becomes a candidate: its past attempts do not count."""
        self._attempts.forget(ref.content)
        record = self._kept.record
        if ref.image is not None and ref.content not in record.images:
            # Written before the engine is asked, so that whatever arrives can be removed again.
            self._kept.save(msgspec.structs.replace(record, images=(*record.images, ref.content)))

    def loaded(self, ref: SlotRef) -> Loaded | None:
        """The loaded candidate; it stays one."""
        return self._ready.get(ref.content)

    def fallen(self) -> Mapping[str, Ending]:
        """Loaded candidates that have ended, by content; what was nobody's fault is forgotten."""
        found: dict[str, Ending] = {}
        for content, loaded in list(self._ready.items()):
            ending = loaded.failure
            if ending is None:
                continue
            found[content] = ending
            if ending.kind is EndKind.OUTSIDE:
                self._attempts.pause(content)
                self._ready.pop(content).close()
        return found

    def take(self, ref: SlotRef) -> Loaded:
        """The loaded candidate, which takes over now."""
        return self._ready.pop(ref.content)

    def release(self, ref: SlotRef) -> None:
        """The loaded candidate is another's to end: it answers requests."""
        self._ready.pop(ref.content, None)

    def drop(self, model: ModelRecord) -> None:
        """The candidate of ``model`` is withdrawn."""
        if model.candidate is not None:
            ready = self._ready.pop(model.candidate.content, None)
            if ready is not None:
                ready.close()

    def refuse(self, name: str, reason: str) -> None:
        """The candidate is unfit, and with it the others of its group; what serves stays."""
        candidate = self._kept.model(name).candidate
        if candidate is None:
            return
        changes = []
        for each in candidate.group or (name,):
            model = self._kept.model(each)
            theirs = model.candidate
            if theirs is None or (each != name and theirs.group != candidate.group):
                continue
            why = reason if each == name else f"with {name} of its group: {reason}"
            event = Event.REFUSE if model.active is not None else Event.STRAND
            failed = self._kept.quarantine(model, theirs, why, shared=each != name)
            found = {"candidate": None, "failed": failed, "beside": None, "unproven": False}
            changes.append(Change(each, event, why, found))
        refused = [(change.model, self._kept.model(change.model)) for change in changes]
        self._kept.change_all(changes)
        for each, model in refused:
            self.withdrawn(each)
            self.drop(model)

    def fetch(self, name: str) -> None:
        """Make every blob, or the image, present."""
        model = self._kept.model(name)
        candidate = model.candidate
        if candidate is None or self._jobs.busy:
            return
        url, env = self._kept.record.config.artifacts_url, self._env
        meter = self._meters[name] = Meter()

        def bundle() -> Fetched:
            fetcher = env.fetcher(url)
            held = [r.digest for r in (model.active, model.fallback) if r and r.image is None]
            return env.store.fetch_bundle(
                fetcher and Metered(fetcher, meter),
                model.repository,
                candidate.digest,
                held=held,
                fallback=model.policy.delta_fallback,
            )

        def image() -> Fetched:
            assert env.images is not None
            return Fetched(env.images.fetch(candidate, url))

        def finish(done: Done) -> None:
            self._meters.pop(name, None)
            if not self._is_candidate(name, candidate, SlotState.FETCHING):
                return
            if done.error is not None and meter.count:  # what broke off has cost as much
                spent = self._kept.model(name).fetched_bytes + meter.count
                self._kept.change(name, None, fetched_bytes=spent)
            if done.error is None:
                fetched = self._kept.model(name).fetched_bytes + done.value.transferred
                self._kept.change(name, Event.FETCHED, fetched_bytes=fetched)
                if done.value.note:
                    self._note(f"{name}: {done.value.note}")
            elif not self.outside(name, candidate, done.error):
                self._failed(name, candidate, done.error)

        self._start(f"fetch-{name}", candidate, image, bundle, finish)

    def verify(self, name: str) -> None:
        """Is what was fetched what was promised, and can it run here?"""
        candidate = self._kept.model(name).candidate
        if candidate is None or self._jobs.busy:
            return
        env = self._env

        def bundle() -> str:
            from edgekit_runtime import fitness  # noqa: PLC0415 - slow to import, seldom needed

            return fitness.open_fit(env.store.reader, name, candidate).manifest.version

        def image() -> str:
            assert env.images is not None
            return env.images.check(name, candidate)

        def finish(done: Done) -> None:
            current = self._kept.model(name).candidate
            if current is None or not self._is_candidate(name, candidate, SlotState.STAGED):
                return
            if done.error is None:
                known = msgspec.structs.replace(current, version=done.value)
                self._kept.change(name, Event.VERIFIED, candidate=known)
                return
            if self.outside(name, candidate, done.error):
                return
            unsuitable = isinstance(done.error, UnsuitableError)
            if unsuitable or not self._attempts.again(candidate.content):
                self.refuse(name, done.error.message)
                return
            # Damaged on this device since it was stored: fetch it once more, then give up.
            if candidate.image is None:
                env.store.discard_damaged(candidate.digest)
            self._kept.change(name, Event.ASSIGN)

        self._start(f"verify-{name}", candidate, image, bundle, finish)

    def self_test(self, name: str) -> None:
        """Load it beside what serves; it must reproduce its golden set."""
        model = self._kept.model(name)
        candidate = model.candidate
        if candidate is None or self._jobs.busy:
            return
        self._kept.change(name, None, test_tries=model.test_tries - 1)
        host = self._env.host
        unloaded = self._hosted.make_way(name, model.policy)

        def work() -> Loaded:
            unloaded()
            return host.load(name, candidate, model.policy, tested=True)

        def finish(done: Done) -> None:
            again = self._is_candidate(name, candidate, SlotState.SHADOW)
            if not again and not self._is_candidate(name, candidate, SlotState.SELF_TEST):
                discard(done)
            elif done.error is None:
                self._ready[candidate.content] = done.value
                if again:  # only loads in a row that end the agent count
                    self._kept.change(name, None, test_tries=model.test_tries)
            elif self.outside(name, candidate, done.error):
                self._kept.change(name, None, test_tries=model.test_tries)  # it was not tested
            else:
                self.refuse(name, f"self-test: {done.error.message}")

        self._jobs.start(f"self-test-{name}", work, finish)

    def _start(
        self,
        job: str,
        ref: SlotRef,
        image: Callable[[], object],
        bundle: Callable[[], object],
        finish: Callable[[Done], None],
    ) -> None:
        if ref.image is None:
            self._jobs.start(job, bundle, finish)
        elif self._env.images is not None:
            self._jobs.start(job, image, finish)
        else:  # the engine was taken out of the configuration meanwhile
            self._jobs.start(job, _no_engine, finish)

    def _failed(self, name: str, candidate: SlotRef, error: EdgekitError) -> None:
        if not isinstance(error, (UnavailableError, ResourceError)):
            self.refuse(name, error.message)
            return
        limit = self._kept.model(name).policy.download_attempts_max
        count = self._attempts.failed(candidate.content)
        note = f"{name}: download attempt {count}: {error.message}"
        if count >= limit and not isinstance(error, DeltaAwaitedError):
            self.refuse(name, note)
        else:
            self._note(note)

    def pause(self, ref: SlotRef) -> None:
        """Try again a little later."""
        self._attempts.pause(ref.content)

    def outside(self, name: str, candidate: SlotRef, error: EdgekitError) -> bool:
        """Whether the engine was away: nobody's failure, tried again for as long as it takes."""
        if not isinstance(error, EngineAwayError):
            return False
        self._attempts.pause(candidate.content)
        self._note(f"{name}: waiting: {error.message}")
        return True

    def _note(self, note: str) -> None:
        if note != self._kept.record.note:
            self._kept.note(note)

    def _is_candidate(self, name: str, ref: SlotRef, state: SlotState) -> bool:
        model = self._kept.model(name)
        same = model.candidate is not None and model.candidate.content == ref.content
        return same and model.state is state


def discard(done: Done) -> None:
    """What was loaded is not wanted any more."""
    if done.error is None:
        done.value.close()


def _no_engine() -> object:
    raise UnsuitableError("it is an image, and no container engine is configured here")
