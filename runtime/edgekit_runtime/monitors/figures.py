"""Running figures of what a region records: of a trial, and of a confirmed bundle lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.stats import histogram
from edgekit_runtime.guard import Flags
from edgekit_runtime.kinds import Kind
from edgekit_runtime.record import ModelRecord
from edgekit_runtime.region import CAPACITY, Labels, Region
from edgekit_runtime.serving import Serving
from edgekit_runtime.verdicts import Lately, Trial

STEPS = 20  # a burn window moves on in so many steps
_OUTPUT_NAN = int(Flags.OUTPUT_NAN)
Throttled = Callable[[], bool | None]
Beside = Callable[[Labels], Sequence[Region]]  # where else a slot counts: applications embed it


def _nowhere(_: Labels) -> Sequence[Region]:
    return ()


class Reader:
    """Reads each record of a slot once: of its worker's region, and of those beside it."""

    def __init__(self, region: Region, beside: Beside = _nowhere, *, fresh: bool = True) -> None:
        """``fresh``: from now on; otherwise with what the rings still hold."""
        self.region = region
        self._beside = beside
        self._positions: dict[str, int] = {}  # by region
        for each in self._regions() if fresh else ():
            self._positions[each.region] = each.head

    def move(self, region: Region) -> None:
        """Go on in another region, from now on."""
        self.region, self._positions[region.region] = region, region.head

    def take(self) -> npt.NDArray[np.void]:
        """What was recorded since the last call; what a power cut took is left out."""
        return np.concatenate([self._new(region) for region in self._regions()])

    def _regions(self) -> list[Region]:
        return [self.region, *self._beside(self.region.labels)]

    def _new(self, region: Region) -> npt.NDArray[np.void]:
        head = region.settled()
        position = self._positions.get(region.region, 0)
        first = max(position, head - CAPACITY)
        self._positions[region.region] = max(position, head)
        return region.records(first, head)[region.intact(first, head)]


def _tally(found: npt.NDArray[np.void]) -> tuple[int, int, int]:
    """(inferences, errors, NaN outputs)."""
    errors = int((found["kind"] == Kind.ERROR).sum())
    predictions = found["kind"] == Kind.PREDICTION
    nan = int((predictions & ((found["flags"] & _OUTPUT_NAN) != 0)).sum())
    return int(predictions.sum()) + errors, errors, nan


def _latencies(found: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    return histogram.count(found["latency_us"][found["kind"] == Kind.PREDICTION].astype(float))


def latency_before(regions: list[Region], digest: str) -> tuple[int, ...]:
    """Latencies of the bundle ``digest``, from what the newest ring of it still holds."""
    for region in reversed(regions):
        if region.labels.digest == digest and region.head:
            return tuple(int(v) for v in _latencies(Reader(region, fresh=False).take()))
    return ()


class TrialCounter:
    """Counts what a region recorded on trial; after a restart only what the ring still holds.

    Latencies do not count while the processor is throttled, nor what was recorded since the look
    before: the throttling may have begun at any time in between.
    """

    def __init__(
        self,
        region: Region,
        started: float,
        *,
        throttled: Throttled,
        before: tuple[int, ...] = (),
        before_s: float = 0.0,
        fresh: bool = True,
        beside: Beside = _nowhere,
    ) -> None:
        """A trial that began at ``started`` (monotonic seconds).

        Args:
            region: where it counts.
            started: when it began, or went on.
            throttled: whether the processor is; None: nobody knows.
            before: latencies of the bundle that served before.
            before_s: seconds on trial before the last start.
            fresh: False after a restart.
            beside: where else the slot counts.
        """
        self._reader = Reader(region, beside, fresh=fresh)
        self._started, self._before_s = started, before_s
        self._throttled, self._before = throttled, before
        self._n = self._errors = self._nan = self._throttled_n = 0
        self._latency = np.zeros(histogram.LATENCY_BUCKETS, dtype=np.int64)
        self._was_throttled: bool | None = None
        self._known = True

    @property
    def region(self) -> Region:
        """Where it counts."""
        return self._reader.region

    def move(self, region: Region, now: float) -> None:
        """The same trial goes on under other labels."""
        self.read(now)
        self._reader.move(region)

    def read(self, now: float) -> Trial:
        """Figures up to now (monotonic seconds)."""
        throttled = self._throttled()
        found = self._reader.take()
        n, errors, nan = _tally(found)
        self._n, self._errors, self._nan = self._n + n, self._errors + errors, self._nan + nan
        if throttled or self._was_throttled:
            self._throttled_n += n
        elif n:
            self._latency += _latencies(found)
        self._was_throttled = throttled
        self._known = self._known and throttled is not None
        return Trial(
            n=self._n,
            errors=self._errors,
            nan=self._nan,
            seconds=self._before_s + now - self._started,
            latency=tuple(int(v) for v in self._latency),
            before=self._before,
            throttled_n=self._throttled_n,
            throttling_known=self._known,
        )


class BurnCounter:
    """Counts what a confirmed bundle answered within the last ``window_s``.

    Begins anew with the agent: a burn that outlasts a restart is seen again within its window.
    """

    def __init__(self, region: Region, beside: Beside = _nowhere) -> None:
        self._reader = Reader(region, beside)
        self._steps: deque[tuple[float, int, int, int]] = deque()  # begun at, n, errors, NaN

    @property
    def region(self) -> Region:
        """Where it counts."""
        return self._reader.region

    def read(self, now: float, window_s: float) -> Lately:
        """Figures up to now (monotonic seconds)."""
        n, errors, nan = _tally(self._reader.take())
        steps = self._steps
        if n and (not steps or now - steps[-1][0] > window_s / STEPS):
            steps.append((now, n, errors, nan))
        elif n:
            begun, *sums = steps.pop()
            steps.append((begun, sums[0] + n, sums[1] + errors, sums[2] + nan))
        while steps and steps[0][0] < now - window_s:
            steps.popleft()
        return Lately(
            n=sum(step[1] for step in steps),
            errors=sum(step[2] for step in steps),
            nan=sum(step[3] for step in steps),
            seconds=window_s,
        )


class Burns:
    """The burn counters of all confirmed bundles whose policy asks for one."""

    def __init__(self, beside: Beside = _nowhere) -> None:
        self._beside = beside
        self._counters: dict[str, BurnCounter] = {}

    def read(
        self, now: float, models: Mapping[str, ModelRecord], servings: Mapping[str, Serving]
    ) -> dict[str, Lately]:
        """Figures by model, up to now (monotonic seconds)."""
        found = {}
        for name, model in models.items():
            live = servings[name].live if name in servings else None
            if live is None or not model.confirmed or model.policy.burn_rate_max is None:
                self._counters.pop(name, None)
                continue
            counter = self._counters.get(name)
            if counter is None or counter.region is not live.region:
                counter = self._counters[name] = BurnCounter(live.region, self._beside)
            found[name] = counter.read(now, model.policy.burn_window_s)
        return found
