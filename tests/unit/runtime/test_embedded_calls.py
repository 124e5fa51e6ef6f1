"""What an application sees of an embedded session: batches, deadlines, flags, refusals, threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest
from agentkit import layouts
from agentkit.embedding import ROW, Host

from edgekit.contracts.contract import OnViolation
from edgekit.contracts.errors import ResourceError, UnavailableError, UsageError
from edgekit.contracts.frames import Lane
from edgekit_runtime import AsyncSession, Flags, Session, embedded
from edgekit_runtime.errors import DeadlineError, GuardError, NotServingError

ROWS = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture
def writer(tmp_path):
    return layouts.LayoutWriter(tmp_path / "layout")


@pytest.fixture
def host(tmp_path, writer):
    found = Host(tmp_path / "state", writer.root)
    yield found
    found.applications.close()
    found.loop.close()


@pytest.fixture
def session(host, writer):
    host.device.deploy(1, writer.add(seed=1), "v1")
    with host.open() as found:
        yield found


def _counted(host) -> int:
    return sum(region.counted for region in host.regions())


def test_importing_the_package_costs_nothing():
    code = "import sys, edgekit_runtime; print(sorted({'numpy', 'typing'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-S", "-c", _path(code)], check=False, capture_output=True, text=True
    )
    assert found.stdout.strip() == "[]", found.stderr


def _path(code: str) -> str:
    folders = [path for path in sys.path if path]
    return f"import sys; sys.path[:0] = {folders!r}; {code}"


def test_an_answer_says_where_it_comes_from_and_is_counted_once(host, session):
    first = session.infer({"x": ROWS}, request_id="r-1")
    np.testing.assert_allclose(first.outputs["scores"], layouts.reference(1, ROWS), atol=1e-5)
    assert (first.version, first.slot, first.request_id) == ("1", "a", "r-1")
    assert first.counted
    assert first.latency_s > 0
    again = session.infer({"x": ROWS}, request_id="r-1")
    assert not again.counted
    assert _counted(host) == 1


def test_a_model_of_fixed_batch_takes_any_number_of_rows(host, writer):
    host.device.deploy(1, writer.add(seed=1, batch=2), "v1")
    with host.open() as session:
        for count in (1, 2, 3, 5):
            rows = ROWS[:count]
            scores = session.infer({"x": rows}).outputs["scores"]
            np.testing.assert_allclose(scores, layouts.reference(1, rows), atol=1e-5)
        assert _counted(host) == 4  # one request is one inference, however it was run
        high = ROWS.copy()
        high[4] = 1000.0
        assert session.infer({"x": high}).flags == Flags.INPUT_RANGE
        for bad in (ROWS[:0], ROWS[0], ROWS.astype(np.float64), ROWS[:, :3]):
            with pytest.raises(GuardError):
                session.infer({"x": bad})


def test_flags_and_refusals_are_told_apart(host, session):
    assert session.infer({"x": ROWS * 1000}).flags == Flags.INPUT_RANGE
    with pytest.raises(GuardError, match="NaN"):
        session.infer({"x": ROWS * np.nan})
    assert _counted(host) == 1
    host.device.counting.drain()
    windows = list(host.device.spool.stored(Lane.HEALTH))
    assert (sum(each.n for each in windows), sum(each.violations for each in windows)) == (1, 2)


def test_many_requests_go_on_after_a_refusal_that_is_heard(host, session):
    requests = [("a", {"x": ROWS}), {"x": ROWS * np.nan}, ("c", {"x": ROWS})]
    refused = []
    found = list(session.infer_many(requests, refused=lambda *args: refused.append(args)))
    assert [result.request_id for result in found] == ["a", "c"]
    assert [(position, type(error)) for position, error in refused] == [(1, GuardError)]
    with pytest.raises(GuardError):
        list(session.infer_many(requests))


def test_what_is_late_is_not_an_answer(host, session, monkeypatch):
    with pytest.raises(DeadlineError) as early:
        session.infer(ROW, deadline_s=0.0)
    assert early.value.late is None
    assert early.value.exit_code == 5
    assert _counted(host) == 0
    times = iter([0.0, 0.0, 0.5, 1.5, 1.5])  # asked, waited, asked the model, answered
    monkeypatch.setattr(embedded, "monotonic", lambda: next(times))
    with pytest.raises(DeadlineError, match=r"0[.]500 s too late") as late:
        session.infer(ROW, request_id="late", deadline_s=1.0)
    monkeypatch.undo()
    assert late.value.late.outputs["scores"].shape == (1, 3)
    assert _counted(host) == 1
    assert session.infer(ROW, deadline_s=60.0).counted


def test_threads_share_a_session_and_every_call_counts(host, session):
    def work() -> None:
        for _ in range(200):
            session.infer(ROW)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _counted(host) == 800


def test_a_forked_child_neither_uses_nor_ends_the_session(host, session):
    host.turn()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            session.infer(ROW)
        except UsageError:
            code = 0
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    host.turn()
    assert session.infer(ROW).counted
    assert session.connected
    assert host.device.deployer.workers_ended == 0


def test_asyncio_waits_in_turn_and_for_no_longer_than_it_may(host, writer):
    host.device.deploy(1, writer.add(seed=1), "v1")

    async def work() -> None:
        opened = await AsyncSession.open("meter", state_dir=host.root, pending_max=8)
        async with opened as session:
            results = await asyncio.gather(
                *(session.infer({"x": ROWS[n : n + 1]}) for n in range(5))
            )
            for number, result in enumerate(results):
                want = layouts.reference(1, ROWS[number : number + 1])
                np.testing.assert_allclose(result.outputs["scores"], want, atol=1e-5)
            with pytest.raises(DeadlineError):
                await session.infer(ROW, deadline_s=0.0)
            calls = [session.infer(ROW) for _ in range(9)]
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in found].count(ResourceError) == 1
            many = [result async for result in session.infer_many([ROW, ("b", ROW)])]
            assert [result.request_id for result in many] == [None, "b"]
            assert session.contract.inputs[0].name == "x"
        with pytest.raises(UsageError):
            await asyncio.to_thread(opened._session.infer, ROW)

    with host.turning():
        asyncio.run(work())
    assert _counted(host) == 5 + 8 + 2


def test_opening_says_what_is_missing(tmp_path, host, writer):
    with pytest.raises(UsageError, match="0 of state_dir"):
        Session.open("meter")
    with pytest.raises(UsageError, match="2 of state_dir"):
        Session.open("meter", state_dir=tmp_path, socket=tmp_path / "x")
    with pytest.raises(UnavailableError, match="no agent answers") as away:
        Session.open("meter", state_dir=tmp_path / "elsewhere")
    assert (away.value.exit_code, bool(away.value.hint)) == (5, True)
    with pytest.raises(NotServingError, match="not active"):
        host.open()
    host.device.deploy(1, writer.add(seed=1), "v1")
    with pytest.raises(NotServingError, match="'other' is not active"), host.turning():
        Session.open("other", state_dir=host.root)
    with pytest.raises(UnavailableError, match="did not say within"):
        Session.open("meter", state_dir=host.root, timeout_s=0.05)  # nobody turns the agent


def test_a_closed_session_says_so_and_closes_twice(session):
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.infer(ROW)


def test_the_age_of_inputs_is_told_and_limited(host, writer):
    base = layouts.contract()
    spec = msgspec.structs.replace(base.inputs[0], age_s_max=60.0, on_age=OnViolation.REJECT)
    host.device.deploy(1, writer.add(found=msgspec.structs.replace(base, inputs=(spec,))), "v1")
    with host.open() as session:
        assert session.infer(ROW, taken_at=time.time()).flags == Flags.NONE
        for taken_at in (None, time.time() - 3600):
            with pytest.raises(GuardError, match="the contract allows 60 s"):
                session.infer(ROW, taken_at=taken_at)
