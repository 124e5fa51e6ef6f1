"""Bounds and quantiles against SciPy; metrics and golden comparison on known cases."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from edgekit.contracts.golden import Tolerance
from edgekit.contracts.verdict import Outcome
from edgekit.stats import bins, bounds, clusters, compare, histogram, metrics, sequential, special
from edgekit.stats.clusters import DeviceRatio


@pytest.mark.parametrize("a", [0.5, 1, 3, 600])
@pytest.mark.parametrize("b", [0.5, 2, 40, 3000])
@pytest.mark.parametrize("p", [1e-6, 0.025, 0.5, 0.999])
def test_beta_quantile_agrees_with_scipy(a, b, p):
    assert special.beta_quantile(p, a, b) == pytest.approx(
        scipy_stats.beta.ppf(p, a, b), rel=1e-7, abs=1e-12
    )


@pytest.mark.parametrize("df", [1, 2, 3.7, 10, 500])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.975, 0.9999])
def test_t_quantile_agrees_with_scipy(df, p):
    expected = scipy_stats.t.ppf(p, df)
    assert special.t_quantile(p, df) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_identical_answers_still_leave_three_over_n():
    right = np.ones(600, dtype=bool)
    drop = bounds.paired_drop(right, right, confidence=0.95)
    assert drop.estimate == 0.0
    assert 3.0 / 600 < drop.upper < 4.0 / 600


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_looks_at_the_same_data_share_one_error(confidence):
    errors = [1.0 - bounds.spent(confidence, look) for look in range(40)]
    assert sum(errors) == pytest.approx(1.0 - confidence)
    assert errors == sorted(errors, reverse=True)


def test_samples_to_resolve_is_the_least_n_that_can_pass():
    n = bounds.samples_to_resolve(0.02, 0.95)
    enough, few = np.ones(n, dtype=bool), np.ones(n - 1, dtype=bool)
    assert bounds.paired_drop(enough, enough, confidence=0.95).upper <= 0.02
    assert bounds.paired_drop(few, few, confidence=0.95).upper > 0.02


def test_paired_drop_covers_the_true_drop():
    rng, missed, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        before = rng.random(200) < 0.95
        after = np.where(rng.random(200) < 0.05, ~before, before)
        truth = 0.05 * (0.95 - 0.05)
        missed += bounds.paired_drop(before, after, confidence=0.95).upper < truth
    assert missed / trials <= 0.05


def test_bounds_refuse_unpaired_or_unfinished_scores():
    with pytest.raises(ValueError, match="shapes"):
        bounds.paired_drop(np.ones(3), np.ones(4), confidence=0.95)
    with pytest.raises(ValueError, match="not finite"):
        bounds.mean_drop(np.ones(3), np.array([1, np.nan, 1.0]), confidence=0.95)


def test_an_answer_with_nan_is_wrong_in_every_metric():
    outputs = np.array([[0.1, 0.9], [np.nan, 0.5]])
    assert metrics.METRICS["top1"].score(outputs, np.array([1, 0])).tolist() == [True, False]
    assert metrics.METRICS["cosine"].score(outputs, np.array([[0.1, 0.9], [1.0, 0]]))[1] == -1.0
    endless = np.array([[np.inf, -np.inf]])  # summed they are an invalid operation, too
    assert metrics.METRICS["cosine"].score(endless, np.array([[1.0, 1.0]])).tolist() == [-1.0]


def test_a_quantized_softmax_is_still_a_softmax():
    """Eight bits: 254/255 instead of 1. Squashed by another softmax it would say 0.73."""
    row = np.array([254.0, 0.0]) / 255.0
    assert metrics.probabilities(row[None])[0].tolist() == [1.0, 0.0]
    assert metrics.top_of_row(row.astype(np.float32)) == (0, pytest.approx(1.0))
    assert metrics.top_of_row(np.array([3.0, 1.0]))[1] == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_bins_count_everything_once_and_name_their_edges():
    edges = bins.Bins((0.0, 1.0, 2.0))
    counts = edges.count(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 9.0, np.nan]))
    assert counts.tolist() == [1, 2, 1, 2, 1]
    assert edges.digest != bins.Bins((0.0, 1.0, 2.5)).digest
    with pytest.raises(ValueError, match="increasing"):
        bins.Bins((1.0, 1.0))


def test_latency_histogram_is_within_a_bucket():
    values = np.array([0.5, 1.0, 150.0, 1e9])
    assert histogram.count(values).sum() == 4
    for value in (1.0, 3.3, 150.0, 99_999.0):
        assert histogram.count(np.array([value]))[histogram.bucket(value)] == 1
    counts = histogram.count(np.full(100, 150.0))
    assert 150.0 <= histogram.quantile_us(counts.tolist(), 0.5) <= 150.0 * 1.19
    assert histogram.quantile_us([0] * histogram.LATENCY_BUCKETS, 0.5) is None


def test_golden_fails_on_nan_missing_output_and_empty_set():
    expected = {"y": np.ones((4, 2), dtype=np.float32)}
    tolerance = Tolerance(abs=1e-3, agreement_min=0.75)
    off = np.ones((4, 2), dtype=np.float32)
    off[0] = np.nan
    assert compare.golden(expected, {"y": off}, tolerance).outcome is Outcome.PASS
    off[1] = 2.0
    assert compare.golden(expected, {"y": off}, tolerance).outcome is Outcome.FAIL
    assert compare.golden(expected, {}, tolerance).outcome is Outcome.FAIL
    assert compare.golden({}, {}, tolerance).outcome is Outcome.FAIL


def test_alpha_spent_over_all_looks_stays_within_alpha():
    assert sum(sequential.spend(0.05, look) for look in range(1, 20_000)) < 0.05


def test_difference_needs_two_devices_on_each_side():
    many = [DeviceRatio(90, 100)] * 5
    assert clusters.difference([DeviceRatio(1, 1)], many, alpha=0.05) is None
    assert clusters.difference([DeviceRatio(9, 10), DeviceRatio(0, 0)], many, alpha=0.05) is None
    found = clusters.difference(many, many, alpha=0.05)
    assert found.low < 0.0 < found.high  # equal to the last digit, yet not certain


@pytest.mark.parametrize(("devices", "spread"), [((3, 9), 0.0), ((4, 8), 0.05), ((2, 40), 0.02)])
def test_difference_covers_zero_when_nothing_changed(devices, spread):
    """Devices differ among themselves, are drawn at random, and many inferences hide nothing."""
    rng, missed, trials = np.random.default_rng(3), 0, 600
    for _ in range(trials):
        ratios = []
        for _ in range(sum(devices)):
            share = float(np.clip(0.9 + spread * rng.standard_normal(), 0, 1))
            ratios.append(DeviceRatio(int(rng.binomial(200, share)), 200))
        found = clusters.difference(ratios[: devices[0]], ratios[devices[0] :], alpha=0.05)
        missed += not found.low <= 0.0 <= found.high
    assert missed / trials <= 0.075  # 0.05 plus three standard errors of 600 trials


@pytest.mark.parametrize("seed", range(20))
def test_the_top_of_a_row_is_that_of_all_rows(seed):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(8, 5)).astype(np.float32) * 4
    rows[::2] = metrics.probabilities(rows[::2])
    rows[1] = [0, 0, 1, 0, 0]
    for row in rows:
        best, share = metrics.top_class(row)
        assert metrics.top_of_row(row) == (int(best), pytest.approx(float(share), rel=1e-6))
    assert metrics.top_of_row(np.array([1, np.nan, 0], np.float32))[0] == -1
    assert metrics.top_of_row(np.array([1, np.inf, 0], np.float32))[0] == -1
