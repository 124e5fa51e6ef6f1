"""``edgekit release create --compose``: links are checked against the bundles of both models."""

from __future__ import annotations

import json

import msgspec
import pytest
from agentkit import composing, layouts

from edgekit.cli import release_file
from edgekit.cli.main import app
from edgekit.contracts.composition import Link
from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.contracts.messages import ImageRef
from edgekit.contracts.release import validate
from edgekit_fleet.rollout import core, spec


def _built(folder, add, model):
    """What ``edgekit build`` leaves, as far as a release reads it."""
    writer = layouts.LayoutWriter(folder)
    digest = add(writer)
    variant = {
        "target": "x86-64-v3", "repository": model, "digest": digest, "bundle_bytes": 1,
    }  # fmt: skip
    record = {"model": model, "version": "1", "variants": [variant]}
    (folder / "build-record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def meter(tmp_path):
    return _built(tmp_path / "meter-out", lambda writer: writer.add(seed=1), "meter")


@pytest.fixture
def second(tmp_path):
    return _built(tmp_path / "second-out", composing.add, "second")


def _create(second, *words):
    app(
        ["release", "create", "b-v1", "--from", str(second), *map(str, words)],
        standalone_mode=False,
    )
    return release_file.read(second / "b-v1.release.json")[0]


def test_a_release_declares_what_feeds_it_and_devices_are_told(meter, second, capsys):
    release = _create(second, "--compose", "s=meter.scores", "--with", meter)
    assert release.compose == (composing.LINK,)
    assert "s = meter.scores" in capsys.readouterr().out
    document = {
        "name": "o",
        "release": "b-v1",
        "waves": [{"name": "all", "percent": 100, "soak_s": 1, "gates": []}],
    }
    wanted = msgspec.convert(document, spec.RolloutSpec)
    assert core.deployment(wanted, release, 0).compose == release.compose
    assert _create(second).compose == ()


@pytest.mark.parametrize(
    ("words", "kind", "problem"),
    [
        (["--compose", "s=meter.nothing"], BadInputError, "meter has no such output"),
        (["--compose", "t=meter.scores"], BadInputError, "second has no such input"),
        (["--compose", "s=other.scores"], UsageError, "no --with gives that model"),
        (["--compose", "s"], UsageError, "is not INPUT=MODEL.OUTPUT"),
        ([], UsageError, "no --compose names that model"),
    ],
)
def test_links_that_do_not_fit_are_refused_and_nothing_is_written(
    meter, second, words, kind, problem
):
    with pytest.raises(kind, match=problem):
        _create(second, *words, "--with", meter)
    assert not (second / "b-v1.release.json").exists()


def test_what_a_feeder_is_fed_by_is_asked_for_and_circles_are_refused(meter, second):
    _create(second, "--compose", "s=meter.scores", "--with", meter)
    fed = second / "b-v1.release.json"
    document = json.loads(fed.read_text())
    document["release"]["compose"][0]["inputs"] = ["camera"]  # as if the meter were fed itself
    fed.write_text(json.dumps(document))
    found = release_file.read(fed)[0]
    assert found.compose[0].inputs == ("camera",)
    words = ["release", "create", "a-v2", "--from", str(meter), "--compose", "x=second.y"]
    with pytest.raises(BadInputError, match="circle: meter <- second <- meter"):
        app([*words, "--with", str(fed)], standalone_mode=False)


def test_images_cannot_be_fed(meter, second):
    release = _create(second, "--compose", "s=meter.scores", "--with", meter)
    variant = release.variants["x86-64-v3"]
    image = ImageRef(digest=variant.digest, repository="second", size=1)
    variants = {"x86-64-v3": msgspec.structs.replace(variant, image=image)}
    with pytest.raises(BadInputError, match="both --compose and images"):
        validate(msgspec.structs.replace(release, variants=variants))
    link = Link(input="s", model="second", output="y", inputs=("s",))
    with pytest.raises(BadInputError, match="itself"):
        validate(msgspec.structs.replace(release, compose=(link,)))
