"""Monitors: what is seen of each inference lies in its record and comes out of the drain exact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from agentkit import layouts
from hypothesis import given
from hypothesis import strategies as st

from edgekit.build import reference as building
from edgekit.contracts import codec, frames
from edgekit.contracts.contract import InputSpec, OnViolation, OutputSpec, Task
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.frames import Lane
from edgekit.contracts.messages import ClockQuality, SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.reference import PROBES_MAX, ProbeKind
from edgekit.stats import probes
from edgekit_runtime import bundles, guard, predictor
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.counting import Counting
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.errors import GuardError
from edgekit_runtime.guard import Flags
from edgekit_runtime.kinds import Kind
from edgekit_runtime.monitors import windows
from edgekit_runtime.monitors.observer import Monitor
from edgekit_runtime.region import CAPACITY, HEADER_BYTES, Region
from edgekit_runtime.screen import Screen
from edgekit_runtime.session import Place, Session
from edgekit_runtime.spool import Spool

DISK, CLOCK = PosixDisk(), SystemClock()
ROWS = np.random.default_rng(3).normal(size=(400, layouts.FEATURES)).astype(np.float32)


def _contract(**changes):
    base = layouts.contract()
    return msgspec.structs.replace(
        base, inputs=(msgspec.structs.replace(base.inputs[0], **changes),)
    )


def _watched(contract):
    scores = layouts.reference(1, ROWS).astype(np.float32)
    return building.derive(contract, {"x": ROWS}, {"scores": scores})


class Hosted:
    """A bundle with probes, loaded here, and the windows it fills."""

    def __init__(self, root, contract) -> None:
        writer = layouts.LayoutWriter(root / "layout")
        watch = codec.encode(_watched(contract))
        digest = writer.add(found=contract, files={"reference": watch})
        loaded = predictor.load(bundles.open_bundle(LayoutReader(writer.root), digest))
        self.spool = Spool.open(DISK, root / "spool", CLOCK)
        self.counting = Counting(DISK, root / "regions", CLOCK, self.spool)
        ref = SlotRef(digest=digest, version="1", target="t", release="r", rollout="o", wave=0)
        region = self.counting.begin(windows.labels_for("meter", ref, "a", loaded))
        place = Place.of("1", "a", self.counting.shelf("meter").lend(region))
        self.region, self.session = region, Session(loaded, place, CLOCK)

    def infer(self, *row, **options):
        return self.session.infer({"x": np.array([row], np.float32)}, **options)

    def window(self):
        self.counting.drain()
        return list(self.spool.stored(Lane.HEALTH))[-1]


def test_every_answer_is_in_one_bin_of_each_probe(tmp_path):
    hosted = Hosted(tmp_path, _contract())
    for row in ROWS[:50]:
        hosted.infer(*row)
    window = hosted.window()
    assert window.n == 50
    assert set(window.probes) == {"class", "confidence", "x[0]", "x[1]", "x[2]", "x[3]"}
    assert all(sum(counts) == 50 for counts in window.probes.values())
    watched = _watched(_contract())
    assert window.edges_digest == watched.edges_digest
    for column in range(layouts.FEATURES):
        probe = watched.groups[0].probes[column]
        where = np.searchsorted(np.float32(probe.edges), ROWS[:50, column], side="right")
        assert window.probes[f"x[{column}]"] == probes.count(where.astype(np.uint8), probe.size)
    assert window.violated == window.outside == {}


def test_each_rule_is_counted_by_input_action_and_element(tmp_path):
    hosted = Hosted(tmp_path, _contract(on_nan=OnViolation.CLAMP))
    hosted.infer(1, 2, 3, 4)
    assert hosted.infer(np.nan, 2, 3, 4).flags & Flags.INPUT_NAN
    assert hosted.infer(101, 2, 3, np.inf).flags & Flags.INPUT_RANGE
    with pytest.raises(GuardError):
        hosted.session.infer({"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(GuardError):
        hosted.session.infer({"y": np.zeros((1, 3), np.float32)})
    window = hosted.window()
    assert (window.n, window.violations) == (3, 4)
    assert window.violated == {"x nan clamp": 1, "x range flag": 1, "x form reject": 2}
    assert window.outside == {"x[0]": 2, "x[3]": 1}
    assert window.probes["x[0]"][-1] == 1  # the bin of NaN
    assert sum(window.probes["x[0]"]) == 3  # what was refused is in no distribution


def test_a_refused_value_names_its_rule_and_element_and_is_in_no_bin(tmp_path):
    hosted = Hosted(tmp_path, _contract(on_range=OnViolation.REJECT))
    with pytest.raises(GuardError):
        hosted.infer(0, 0, -500, 0)
    window = hosted.window()
    assert (window.n, window.violations) == (0, 1)
    assert window.violated == {"x range reject": 1}
    assert window.outside == {"x[2]": 1}
    assert all(sum(counts) == 0 for counts in window.probes.values())


@pytest.mark.parametrize("policy", [OnViolation.FLAG, OnViolation.REJECT])
def test_data_too_old_or_of_unknown_age_is_stale(tmp_path, policy):
    hosted = Hosted(tmp_path, _contract(age_s_max=5.0, on_age=policy))
    now = CLOCK.wall()
    assert hosted.infer(0, 0, 0, 0, taken_at=now).flags is Flags.NONE
    for taken_at in (now - 60, None):
        if policy is OnViolation.FLAG:
            assert hosted.infer(0, 0, 0, 0, taken_at=taken_at).flags is Flags.INPUT_AGE
        else:
            with pytest.raises(GuardError, match="the contract allows 5 s"):
                hosted.infer(0, 0, 0, 0, taken_at=taken_at)
    window = hosted.window()
    assert window.violations == 2
    assert window.violated == {f"x age {policy.value}": 2}
    assert window.outside == {}


def _read_all(root):
    spool = Spool.open(DISK, root / "spool", CLOCK)
    counting = Counting(DISK, root / "regions", CLOCK, spool)
    counting.drain()
    return counting, list(spool.stored(Lane.HEALTH))


def test_distributions_agree_with_counts_after_a_kill_at_any_instruction(tmp_path):
    hosted = Hosted(tmp_path, _contract())
    hosted.counting.drain()
    script = (
        "import os, sys\nimport numpy as np\n"
        "from edgekit_runtime.kinds import Kind\n"
        "from edgekit_runtime.region import Region, Sight\n"
        "from pathlib import Path\nfrom edgekit_runtime.journal import Journal\n"
        "region = Region(Path(sys.argv[1]))\njournal = Journal()\njournal.add(region)\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    journal.record(region, Kind.PREDICTION, number, 1.0, 5.0,\n"
        "        Sight(number % 3, 0.5, 0, bytes([number % 7, number % 5, 1, 2])))\n"
        "    if number % 100 == 0:\n"
        "        os.write(1, b'.')\n"
    )
    path = hosted.region.path
    hosted.region.close()
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.read(15)
        os.kill(writer.pid, signal.SIGKILL)
    counting, found = _read_all(tmp_path)
    told = [window for window in found if window.probes]
    full = sum(window.n for window in found if not window.probes)  # the ring may have been full
    assert counting.produced() == sum(window.n for window in found) >= 1500
    assert sum(window.n for window in told) + full == counting.produced()
    for window in told:
        assert all(sum(counts) == window.n for counts in window.probes.values())
        assert window.n <= CAPACITY


def test_a_crash_between_spool_and_tail_drains_once(tmp_path):
    hosted = Hosted(tmp_path, _contract())
    for row in ROWS[:20]:
        hosted.infer(*row)
    raw = hosted.region.path.read_bytes()
    hosted.counting.drain()
    # The power went before the tail reached the medium: the file is as it was before the drain.
    hosted.region.path.write_bytes(raw)
    _, found = _read_all(tmp_path)
    assert sum(window.n for window in found) == 20
    assert sum(sum(window.probes["x[1]"]) for window in found) == 20


def _wide_contract(features: int, inputs: int = 1):
    specs = tuple(
        InputSpec(name=f"{'input' * 30}-{index}", dtype="float32", shape=("n", features))
        for index in range(inputs)
    )
    return msgspec.structs.replace(layouts.contract(), inputs=specs)


def test_a_window_of_32_features_takes_a_kilobyte(tmp_path):
    generator = np.random.default_rng(1)
    contract = msgspec.structs.replace(
        _wide_contract(32), inputs=(InputSpec(name="x", dtype="float32", shape=("n", 32)),)
    )
    rows = generator.normal(size=(2000, 32)).astype(np.float32)
    scores = generator.dirichlet(np.ones(3), size=2000).astype(np.float32)
    watch = building.derive(contract, {"x": rows}, {"scores": scores})
    monitor = Monitor(contract, watch, "scores")
    loaded = _Loaded(contract, watch)
    ref = SlotRef(
        digest="sha256:" + "0" * 64, version="1", target="t", release="r", rollout="o", wave=0
    )
    region = Region.create(DISK, tmp_path / "1.rgn", windows.labels_for("m", ref, "a", loaded))
    for row, score in zip(rows[:1000], scores[:1000], strict=True):
        sight = monitor.observe({"x": row[None]}, {"scores": score[None]}, 0)
        latency_us = float(generator.lognormal(5.0, 0.3))
        region.append(
            Kind.PREDICTION, 0, 1.0, latency_us, sight.confidence, sight.cls, bins=sight.bins
        )
    window = windows.aggregate(
        region.labels,
        region.region,
        0,
        region.records(0, 1000),
        region.intact(0, 1000),
        now=2.0,
        clock=ClockQuality.SYNCED,
    )
    assert len(window.probes) == 34
    raw = frames.encode(epoch=1, boot=1, lane=1, seq=1, records=[window])
    assert len(raw) <= 1024


class _Loaded:
    def __init__(self, contract, reference) -> None:
        self.contract, self.reference = contract, reference


def test_labels_of_the_largest_contract_fit_into_a_region(tmp_path):
    contract = _wide_contract(32, inputs=30)
    rows = {spec.name: ROWS[:, :1].repeat(32, axis=1) for spec in contract.inputs}
    watch = building.derive(contract, rows, {"scores": layouts.reference(1, ROWS)})
    assert sum(len(group.probes) for group in watch.groups) <= PROBES_MAX
    ref = SlotRef(
        digest="sha256:" + "0" * 64,
        version="v" * 64,
        target="t",
        release="r" * 64,
        rollout="o" * 64,
        wave=0,
    )
    labels = windows.labels_for("m" * 64, ref, "a", _Loaded(contract, watch))
    assert Region.create(DISK, tmp_path / "1.rgn", labels).labels == labels
    assert len(codec.encode(labels)) < HEADER_BYTES - 256


def test_large_inputs_are_summarised_and_other_outputs_watched_by_value_or_length():
    image = InputSpec(name="image", dtype="uint8", shape=("n", 3, 32, 32))
    outputs = (
        OutputSpec(name="score", dtype="float32", shape=("n", 1), task=Task.ANOMALY_SCORE),
        OutputSpec(name="vector", dtype="float32", shape=("n", 16), task=Task.EMBEDDING),
    )
    contract = msgspec.structs.replace(layouts.contract(), inputs=(image,), outputs=outputs)
    generator = np.random.default_rng(5)
    images = generator.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    given_outputs = {"score": ROWS[:64, :1], "vector": ROWS[:64].repeat(4, axis=1)}
    watch = building.derive(contract, {"image": images}, given_outputs)
    names = [probe.name for group in watch.groups for probe in group.probes]
    assert names == ["image.mean", "image.spread", "score[0]", "vector.norm"]
    assert [group.kind for group in watch.groups] == [
        ProbeKind.SUMMARY,
        ProbeKind.VALUES,
        ProbeKind.NORM,
    ]
    monitor = Monitor(contract, watch, None)
    outputs_of = {name: array[:1] for name, array in given_outputs.items()}
    assert len(monitor.observe({"image": images[:1]}, outputs_of, 0).bins) == 4
    dark = monitor.observe({"image": images[:1] // 8}, outputs_of, 0)
    assert dark.bins[0] == 0  # far below every mean that was seen
    absent = monitor.observe({"image": images[:1]}, {}, 0)
    assert absent.bins[2:] == b"\x7f\x7f"


def test_a_reference_whose_digest_is_not_its_edges_own_is_refused(tmp_path):
    writer = layouts.LayoutWriter(tmp_path)
    watch = msgspec.structs.replace(_watched(_contract()), edges_digest="0" * 16)
    digest = writer.add(files={"reference": codec.encode(watch)})
    with pytest.raises(BadInputError, match="edges_digest"):
        bundles.open_bundle(LayoutReader(writer.root), digest)


NUMBERS = st.one_of(
    st.floats(-150, 150, width=32),
    st.sampled_from([np.nan, np.inf, -np.inf, 100.0, -100.0, 3e38, -3e38]),
)


@given(st.lists(NUMBERS, min_size=4, max_size=4), st.booleans(), st.booleans())
def test_the_screen_passes_only_what_the_guard_passes(row, ranged, large):
    contract = _contract(range=(-100.0, 100.0) if ranged else None, on_nan=OnViolation.FLAG)
    array = np.array([row] * (20 if large else 1), np.float32)
    passed = Screen(contract).passes({"x": array})
    flags = guard.check(contract, {"x": array})
    assert not (passed and flags)
    ordinary = np.abs(array).max() <= 100
    assert not ordinary or (passed and not flags)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"y": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 4))},
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros(4, np.float32)},
        {"x": np.zeros((), np.float32)},
        {"x": np.zeros((0, 4), np.float32)},
        {"x": np.zeros((1, 4), np.float32), "y": np.zeros(1, np.float32)},
    ],
)
def test_the_screen_leaves_other_forms_to_the_guard(arrays):
    assert not Screen(_contract()).passes(arrays)
    with pytest.raises(GuardError):
        guard.check(_contract(), arrays)


@given(st.lists(st.floats(width=32), min_size=1, max_size=60))
def test_bins_on_the_device_are_those_of_numpy(values):
    column = np.array(values, np.float32)[:, None]
    contract = msgspec.structs.replace(
        layouts.contract(), inputs=(InputSpec(name="x", dtype="float32", shape=("n", 1)),)
    )
    watch = building.derive(
        contract, {"x": column}, {"scores": np.ones((len(column), 3), np.float32) / 3}
    )
    monitor = Monitor(contract, watch, "scores")
    scores = {"scores": np.ones((1, 3), np.float32) / 3}
    found = np.zeros(watch.groups[0].probes[0].size, dtype=int)
    for row in column:
        flags = 0 if np.isfinite(row).all() else int(Flags.INPUT_NAN)
        found[monitor.observe({"x": row[None]}, scores, flags).bins[0] & 0x7F] += 1
    assert tuple(found) == watch.probes["x[0]"]
