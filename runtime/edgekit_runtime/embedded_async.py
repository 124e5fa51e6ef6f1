"""`Session` for asyncio: calls run one after the other on a thread of the session's own.

::

    async with await AsyncSession.open("meter", state_dir="/var/lib/edgekit") as session:
        result = await session.infer({"power": rows}, deadline_s=0.1)

A call that is cancelled is not awaited any more; what has begun ends, and is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TypeVar

from typing_extensions import Self

from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import EdgekitError, ResourceError
from edgekit_runtime.embedded import OPEN_S, Request, Session
from edgekit_runtime.ports import Array
from edgekit_runtime.session import Result

PENDING_MAX = 64  # calls that wait; more would be late anyway
T = TypeVar("T")


class AsyncSession:
    """One model in this process. Belongs to one event loop."""

    def __init__(
        self, session: Session, executor: ThreadPoolExecutor, *, pending_max: int = PENDING_MAX
    ) -> None:
        """Use `open`."""
        self._session = session
        self._executor = executor
        self._pending = 0
        self._pending_max = pending_max

    @classmethod
    async def open(
        cls,
        model: str,
        *,
        state_dir: Path | str | None = None,
        config: Path | str | None = None,
        socket: Path | str | None = None,
        threads: int | None = None,
        timeout_s: float = OPEN_S,
        pending_max: int = PENDING_MAX,
    ) -> AsyncSession:
        """Like `Session.open`; ``pending_max`` calls may wait at once. Raises like it."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"session-{model}")
        work = partial(
            Session.open,
            model,
            state_dir=state_dir,
            config=config,
            socket=socket,
            threads=threads,
            timeout_s=timeout_s,
        )
        try:
            found = await asyncio.get_running_loop().run_in_executor(executor, work)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(found, executor, pending_max=pending_max)

    async def infer(
        self,
        inputs: Mapping[str, Array],
        *,
        request_id: str | None = None,
        deadline_s: float | None = None,
        taken_at: float | None = None,
    ) -> Result:
        """Like `Session.infer`; the deadline counts from here, waiting for others included.

        Raises:
            ResourceError: too many calls wait already.
            EdgekitError: like `Session.infer`.
        """
        until = None if deadline_s is None else monotonic() + deadline_s
        return await self._run(
            lambda: self._session.infer_until(inputs, request_id, until, taken_at)
        )

    async def infer_many(
        self,
        requests: Iterable[Request],
        *,
        deadline_s: float | None = None,
        refused: Callable[[int, EdgekitError], None] | None = None,
    ) -> AsyncIterator[Result]:
        """Like `Session.infer_many`. Raises like it."""
        for position, request in enumerate(requests):
            request_id, inputs = request if isinstance(request, tuple) else (None, request)
            try:
                result = await self.infer(inputs, request_id=request_id, deadline_s=deadline_s)
            except EdgekitError as exc:
                if refused is None:
                    raise
                refused(position, exc)
            else:
                yield result

    async def follow(self) -> None:
        """Like `Session.follow`."""
        await self._run(self._session.follow)

    @property
    def contract(self) -> Contract:
        """See `Session.contract`."""
        return self._session.contract

    @property
    def connected(self) -> bool:
        """See `Session.connected`."""
        return self._session.connected

    async def close(self) -> None:
        """Answer what waits, say goodbye and unload."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _close(self) -> None:
        self._executor.shutdown()
        self._session.close()

    async def _run(self, work: Callable[[], T]) -> T:
        if self._pending >= self._pending_max:
            raise ResourceError(
                f"{self._pending} calls wait already", hint="send slower, or allow more"
            )
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(self._done)
        return await future

    def _done(self, _: object) -> None:
        self._pending -= 1
