"""Everything that serves on this device, and what has become of the processes that held it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import EdgekitError, ResourceError
from edgekit.contracts.messages import DeviceEvent, Policy
from edgekit.engine.ports import EngineAwayError
from edgekit_runtime import process_facts
from edgekit_runtime.deployment import Environment
from edgekit_runtime.errors import WorkerEndedError
from edgekit_runtime.monitors.windows import labels_for
from edgekit_runtime.planner import Ended
from edgekit_runtime.ports import Loaded
from edgekit_runtime.record import ModelRecord
from edgekit_runtime.region import Region
from edgekit_runtime.serving import Live, Serving
from edgekit_runtime.supervision import Crashes, Ending, EndKind
from edgekit_runtime.worker_model import WorkerModel

UNLOAD_S_MAX = 60.0  # answers what it has, then ends; what hangs is killed before
log = logging.getLogger(__name__)


class Hosted:
    """Belongs to the control thread; `servings` may be read by any."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self.servings: dict[str, Serving] = {}
        self._crashes: dict[str, Crashes] = {}
        self._lost: dict[str, list[Ending]] = {}
        self.ended = 0  # processes with a model that ended without being told to

    def serving(self, name: str) -> Serving:
        """The serving side of ``name``; made on first use."""
        serving = self.servings.get(name)
        if serving is None:
            serving = Serving(name, self._env.counting.shelf(name), self._env.serving_changed)
            # Readers on other threads see either the old or the new dictionary.
            self.servings = {**self.servings, name: serving}
            self._env.serving_changed(serving)  # known, if not served yet
        return serving

    def loaded(self) -> dict[str, str]:
        """Digest of what serves, by model."""
        return {
            name: serving.live.ref.content
            for name, serving in self.servings.items()
            if serving.live is not None
        }

    def rss_bytes(self) -> dict[str, int]:
        """Resident bytes by model; without those that this process cannot see."""
        found = {}
        for name, serving in self.servings.items():
            loaded = serving.live.loaded if serving.live is not None else None
            pid = loaded.pid if isinstance(loaded, WorkerModel) else 0
            size = process_facts.rss_bytes(pid) if pid else None
            if size is not None:
                found[name] = size
        return found

    def serve(self, name: str, model: ModelRecord, loaded: Loaded) -> Region:
        """Serve ``loaded`` as what ``model`` calls active; the region that counts it."""
        assert model.active is not None
        labels = labels_for(name, model.active, model.slot, loaded)
        region = self._env.counting.begin(labels)
        self.serving(name).switch(Live(loaded, region, model.active, model.slot))
        return region

    def make_way(self, name: str, policy: Policy) -> Callable[[], None]:
        """Unload what serves ``name`` where there is no memory for two.

        Returns what waits until that memory is free, for a job's thread.
        """
        if policy.overlap:
            return lambda: None
        serving = self.serving(name)
        loaded = serving.live.loaded if serving.live is not None else None
        serving.stop()

        def wait() -> None:
            if isinstance(loaded, WorkerModel) and not loaded.gone(UNLOAD_S_MAX):
                raise ResourceError(f"{name}: what served was not unloaded in {UNLOAD_S_MAX:g} s")

        return wait

    def take_ends(self) -> bool:
        """Stop serving with what has ended; whether anything has."""
        found = False
        for name, serving in self.servings.items():
            live = serving.live
            ending = live.loaded.failure if live is not None else None
            if live is None or ending is None:
                continue
            found = True
            serving.stop()
            self._note(name, ending)
            self.tell(f"{name} {digests.short(live.ref.digest)}: {ending.story}")
        return found

    def could_not_start(self, name: str, error: EdgekitError) -> None:
        """Its process ended while loading, or there was no room for one: later, and later again."""
        if isinstance(error, WorkerEndedError):
            self._note(name, error.ending)
            self.tell(error.message)
        elif isinstance(error, EngineAwayError):
            log.warning("%s: %s", name, error.message)
            self._note(name, Ending(EndKind.OUTSIDE, error.message))
        else:
            self._note(name, Ending(EndKind.CRASH, error.message))

    def forget(self, name: str) -> None:
        """Another bundle takes over: the past is not its own."""
        self._crashes.pop(name, None)
        self._lost.pop(name, None)

    def application_ended(self, name: str, ending: Ending) -> None:
        """An application that embeds the bundle on trial ended untold, or cannot load it."""
        self._lost.setdefault(name, []).append(ending)

    def charged(self, name: str) -> None:
        """A try was spent for the oldest of them."""
        lost = self._lost.get(name, [])
        if len(lost) > 1:
            del lost[0]
        else:
            self._lost.pop(name, None)

    def lost(self) -> Mapping[str, Ended]:
        """Applications that ended on trial and have cost no try yet."""
        return {name: Ended(endings[-1], len(endings)) for name, endings in self._lost.items()}

    def ends(self) -> Mapping[str, Ended]:
        """What the planner must know of ended processes."""
        now = self._env.clock.monotonic()
        return {
            name: Ended(crashes.last, crashes.count(now), now < crashes.start_at)
            for name, crashes in self._crashes.items()
            if crashes.last is not None
        }

    def tell(self, detail: str) -> None:
        """A process that held a model has ended: an audit record, and a line in the log."""
        self.ended += 1
        log.warning("%s", detail)
        at = self._env.clock.wall()
        self._env.emit(DeviceEvent(kind="worker_ended", detail=detail[:500], at=at))

    def _note(self, name: str, ending: Ending) -> None:
        self._crashes.setdefault(name, Crashes()).add(ending, self._env.clock.monotonic())
