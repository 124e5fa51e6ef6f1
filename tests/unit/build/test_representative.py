"""Calibration beside what variants are judged on: what it misses is said, random data refused."""

import re

import numpy as np
import pytest
from scipy import stats

from edgekit.build.representative import compare
from edgekit.contracts.errors import BadInputError
from edgekit.stats.two_samples import ks_distance

RNG = np.random.default_rng(0)


def field(n, scale=1.0):
    """Readings as they come: positive, skewed."""
    return {"x": (RNG.gamma(2.0, scale, (n, 16))).astype(np.float32)}


def test_the_distance_is_that_of_scipy():
    for a, b in ((RNG.normal(size=80), RNG.normal(0.3, 2, 130)), (RNG.integers(0, 9, 50),) * 2):
        assert ks_distance(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)
    assert ks_distance(np.zeros(3), np.ones(4)) == 1.0
    assert ks_distance(np.zeros(0), np.ones(4)) == 0.0


def test_samples_of_one_kind_are_quiet():
    assert compare(field(200), field(500), ["x"]) == []


@pytest.mark.parametrize(
    "random",
    [RNG.normal(size=(200, 16)), RNG.uniform(-1, 1, (200, 16)), np.full((200, 16), 0.01)],
    ids=["normal", "uniform", "almost nothing"],
)
def test_random_data_are_refused_by_name(random):
    with pytest.raises(BadInputError, match=r"array 'x' is nothing like the tuning data") as caught:
        compare({"x": random.astype(np.float32)}, field(300, 3.0), ["x"])
    assert "as they come in the field" in caught.value.hint


def test_samples_that_leave_the_range_are_counted():
    tuning = field(300)
    tuning["x"][:60] *= 20.0
    (found,) = compare(field(200), tuning, ["x"])
    assert re.match(r"2\d% of the tuning samples leave the range of input .x.", found)


def test_what_is_no_number_and_what_is_not_finite_is_no_obstacle():
    words = {"x": np.array([["a"], ["b"]])}
    assert compare(words, words, ["x"]) == []
    holes = field(300)
    holes["x"][0, 0] = np.nan
    assert compare(holes, holes, ["x"]) == []


def test_a_slice_that_calibration_never_saw_is_named():
    tuning = field(100) | {"slice": np.arange(100) % 3}
    calibration = field(100) | {"slice": np.zeros(100, np.int64)}
    assert compare(calibration, tuning, ["x"]) == ["calibration holds no sample of slice 1, 2"]
    assert compare(calibration, calibration, ["x"]) == []
