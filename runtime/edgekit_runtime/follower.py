"""Follower: a candidate that is given what was answered, and says whether it agrees.

Runs in the candidate's worker. Its records stand in a region of their own and are no inferences.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from edgekit.contracts.contract import Task
from edgekit.stats.compare import agreeing
from edgekit_runtime.board import Board
from edgekit_runtime.errors import EngineError, GuardError, is_memory
from edgekit_runtime.guard import Flags
from edgekit_runtime.kinds import Kind
from edgekit_runtime.ports import Array, Clock
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.region import AGREED, Region
from edgekit_runtime.samples import Buffer, Sample


class Follower:
    """One candidate, one region."""

    def __init__(
        self,
        predictor: Predictor,
        region: Region,
        clock: Clock,
        board: Board | None,
        *,
        abs_max: float,
        rel_max: float,
    ) -> None:
        """Nothing followed yet; on ``board`` the agent sees an inference that does not end."""
        self._predictor = predictor
        self._region = region
        self._clock = clock
        self._board = board
        self._abs, self._rel = abs_max, rel_max

    def follow(self, sample: Sample) -> bool:
        """Run the candidate on a sample and record what came of it.

        Returns:
            Whether it answers, and otherwise than what serves did.

        Raises:
            MemoryError: an allocation failed; nothing is recorded.
        """
        if self._board is not None:
            self._board.begin(time.monotonic_ns())
        try:
            return self._compare(sample)
        finally:
            if self._board is not None:
                self._board.end(time.monotonic_ns())

    def _compare(self, sample: Sample) -> bool:
        begun = time.perf_counter_ns()
        try:
            outputs, flags = self._predictor.predict(sample.inputs)
        except (EngineError, GuardError) as exc:
            if is_memory(exc):
                raise MemoryError(exc.message) from exc
            self._record(Kind.SHADOW_ERROR, sample, 0.0, 0)
            return False
        latency_us = (time.perf_counter_ns() - begun) / 1e3
        agrees = self._agrees(sample.outputs, outputs)
        noted = int(flags & Flags.OUTPUT_NAN) | (AGREED if agrees else 0)
        self._record(Kind.SHADOW, sample, latency_us, noted)
        return not agrees

    def replay(self, descriptor: int) -> None:
        """Follow everything in a memory file, and close it. Raises like `follow`."""
        buffer = Buffer(descriptor, 0)
        for sample in buffer.read():
            self.follow(sample)
        buffer.close()

    def close(self) -> None:
        """Let go of the region."""
        self._region.close()

    def _agrees(self, live: Mapping[str, Array], ours: Mapping[str, Array]) -> bool:
        specs = self._predictor.contract.outputs
        if not any(spec.task is Task.DETECTION for spec in specs):
            # One request is one sample, whatever its first axis means.
            live = {name: array[None] for name, array in live.items()}
            ours = {name: array[None] for name, array in ours.items()}
        alike = agreeing(specs, live, ours, abs_max=self._abs, rel_max=self._rel)
        return alike.size > 0 and bool(alike.all())

    def _record(self, kind: Kind, sample: Sample, latency_us: float, flags: int) -> None:
        self._region.append(
            kind,
            request=sample.request,
            time=self._clock.wall(),
            latency_us=latency_us,
            cls=min(sample.dropped, 2**31 - 1),
            flags=flags,
        )
