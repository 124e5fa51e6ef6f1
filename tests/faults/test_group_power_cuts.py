"""Models that change together: all or none, whatever happens at whichever write."""

from __future__ import annotations

import pytest
from agentkit import layouts
from agentkit.device import InlineJobs
from agentkit.disks import FaultyDisk, PowerCut
from agentkit.groups import NAMES, Pair

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import check_group
from edgekit.contracts.states import SlotState
from edgekit_runtime import deployer as module
from edgekit_runtime.disk import PosixDisk

ONLINE_EVERY = 8  # boots go on to meet a manager: they find the same record as offline
PARTS = 4  # side by side
OVERFLOWS = 3e38  # a legal float32 that makes the model answer NaN


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    monkeypatch.setattr(module, "JobRunner", InlineJobs)


@pytest.fixture
def layout(tmp_path):
    writer = layouts.LayoutWriter(tmp_path / "layout")
    pairs = [
        tuple(writer.add(model=name, seed=seed, version=str(seed)) for name in NAMES)
        for seed in (1, 2, 3)
    ]
    liar = writer.add(model="meter", seed=4, version="4", golden_seed=5)
    broken = (writer.add(model="door", seed=4, version="4"), liar)
    return writer.root, pairs, broken


def _story(root, layout, disk) -> None:
    """Install, update, be refused, be rolled back on trial."""
    where, pairs, broken = layout
    device = Pair(root, where, disk)
    device.order(1, pairs[0], "v1")
    device.ask(3)
    device.order(2, pairs[1], "v2")
    device.ask(3)
    device.order(3, broken, "v4")
    device.order(4, pairs[2], "v3")
    device.ask(3, OVERFLOWS, names=("meter",))


def test_the_story_itself(tmp_path, layout):
    _, pairs, broken = layout
    _story(tmp_path / "s", layout, PosixDisk())
    device = Pair(tmp_path / "s", None, PosixDisk())
    device.settle()
    assert device.actives() == device.served() == pairs[1]
    door, meter = device.models()
    assert {door.state, meter.state} == {SlotState.ROLLED_BACK}
    assert "golden" in meter.failed[broken[1]].reason
    assert "with meter of its group" in door.failed[broken[0]].reason
    assert "NaN rate" in meter.failed[pairs[2][1]].reason
    assert "with meter of its group" in door.failed[pairs[2][0]].reason


@pytest.mark.parametrize("part", range(PARTS))
def test_after_every_power_cut_all_models_are_old_or_all_are_new(tmp_path, layout, part):
    where, pairs, _ = layout
    dry = FaultyDisk()
    _story(tmp_path / "dry", layout, dry)
    allowed = {(None, None), *pairs}
    seen = set()
    for crash_at in range(part, dry.operations, PARTS):
        state = tmp_path / f"s{crash_at}"
        with pytest.raises(PowerCut):
            _story(state, layout, FaultyDisk(crash_at=crash_at, seed=crash_at))
        device = Pair(state, None, PosixDisk())  # offline, from the first look at the record on
        assert device.actives() in allowed, crash_at
        device.settle()
        assert device.actives() in allowed, crash_at
        assert device.served() == device.actives(), crash_at
        seen.add(device.actives())
        if crash_at // PARTS % ONLINE_EVERY:
            continue
        online = Pair(state, where, PosixDisk())
        online.order(9, pairs[0], "v1")
        online.ask(3)
        assert online.actives() == online.served() == pairs[0], crash_at
        assert {m.state for m in online.models()} == {SlotState.CONFIRMED}, crash_at
    print(f"cut points: {dry.operations}")
    assert seen >= {(None, None), pairs[0], pairs[1]}


def test_a_group_waits_for_its_slowest_member_and_is_confirmed_as_one(tmp_path, layout):
    where, pairs, _ = layout
    device = Pair(tmp_path / "s", where, PosixDisk())
    device.order(1, pairs[0], "v1")
    device.ask(3, names=("door",))
    assert {m.state for m in device.models()} == {SlotState.TRIAL}
    device.ask(3, names=("meter",))
    assert {m.state for m in device.models()} == {SlotState.CONFIRMED}


def test_a_group_is_not_taken_up_in_part(tmp_path, layout):
    where, pairs, broken = layout
    device = Pair(tmp_path / "s", where, PosixDisk())
    device.order(1, pairs[0], "v1")
    device.ask(3)
    device.order(2, pairs[1], "v2", group=("door", "meter", "other"))
    assert device.actives() == pairs[0]
    assert "other of its group is not deployed" in device.deployer.record.note
    device.order(3, broken, "v4")
    device.order(4, (pairs[1][0], broken[1]), "v5")  # its digest is quarantined
    assert device.actives() == pairs[0]
    assert "meter of its group cannot be taken up" in device.deployer.record.note
    device.order(5, (broken[0], pairs[1][1]), "v6")  # was refused for the other's sake: once more
    assert device.actives() == (broken[0], pairs[1][1])


def test_a_member_that_changed_alone_goes_back_alone(tmp_path, layout):
    where, pairs, _ = layout
    device = Pair(tmp_path / "s", where, PosixDisk())
    device.order(1, pairs[0], "v1")
    device.ask(3)
    mixed = (pairs[0][0], pairs[1][1])
    device.order(2, mixed, "v2")
    assert device.actives() == mixed
    device.ask(3, OVERFLOWS, names=("meter",))
    assert device.actives() == pairs[0]
    assert device.models()[0].failed == {}


@pytest.mark.parametrize("group", [("a",), ("a", "a"), ("b", "c"), tuple("abcdefghijklmnopq")])
def test_a_group_that_cannot_be_obeyed_is_refused(group):
    with pytest.raises(BadInputError, match="group of a"):
        check_group("a", group)
