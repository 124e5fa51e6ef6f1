"""Step cache: everything declared is in the key, damage is repaired, failures leave nothing."""

import errno

import msgspec
import pytest

from edgekit.build.cache import Cache, Step
from edgekit.contracts.errors import ResourceError

STEP = Step("s", 1, {"tool": "1.0"}, {"in": "sha256:a"}, {"p": 1})


def make(folder):
    (folder / "out").write_bytes(b"result")
    return {"fact": 1}


def test_second_run_only_looks_up(tmp_path):
    cache = Cache(tmp_path)
    assert not cache.run(STEP, make).reused
    entry = cache.run(STEP, lambda _: pytest.fail("made again"))
    assert entry.reused
    assert entry.facts == {"fact": 1}
    assert entry.file("out").read_bytes() == b"result"


def test_every_declared_thing_changes_the_key():
    others = [
        Step("t", 1, STEP.tools, STEP.inputs, STEP.parameters),
        Step("s", 2, STEP.tools, STEP.inputs, STEP.parameters),
        Step("s", 1, {"tool": "1.1"}, STEP.inputs, STEP.parameters),
        Step("s", 1, STEP.tools, {"in": "sha256:b"}, STEP.parameters),
        Step("s", 1, STEP.tools, STEP.inputs, {"p": 2}),
        Step("s", 1, STEP.tools, STEP.inputs),
    ]
    keys = {step.key() for step in [STEP, *others]}
    assert len(keys) == 7
    assert all(len(key) == len("sha256:") + 64 for key in keys)


@pytest.mark.parametrize("name", ["out", "entry.json"])
def test_damaged_entries_are_made_again(tmp_path, name):
    cache = Cache(tmp_path)
    damaged = cache.run(STEP, make).file(name)
    damaged.write_bytes(b"resulx")
    entry = cache.run(STEP, make)
    assert not entry.reused
    assert entry.file("out").read_bytes() == b"result"


def test_a_failing_step_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "out").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = Cache(tmp_path / "cache")
    with pytest.raises(ResourceError, match="No space left"):
        cache.run(STEP, fill)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not cache.run(STEP, make).reused


def test_facts_may_be_structs(tmp_path):
    class Fact(msgspec.Struct):
        value: float

    cache = Cache(tmp_path)
    cache.run(STEP, lambda _: {"fact": Fact(0.5)})
    assert cache.run(STEP, make).facts == {"fact": {"value": 0.5}}
