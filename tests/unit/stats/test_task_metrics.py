"""Metrics per task: against hand-made and reference values; bounds that cover; own functions."""

import numpy as np
import pytest

from edgekit.contracts.errors import BadInputError
from edgekit.stats import bounds
from edgekit.stats.metrics import METRICS, metric_of


def value(name, outputs, truth):
    metric = METRICS[name]
    return metric.value(metric.score(outputs, truth))


def test_macro_f1_counts_a_minority_as_much_as_a_majority():
    truth = np.asarray([0] * 8 + [1] * 2)
    outputs = np.eye(2)[[0] * 9 + [1]]
    assert value("macro_f1", outputs, truth) == pytest.approx((16 / 17 + 2 / 3) / 2)
    assert value("macro_f1", np.eye(2)[truth], truth) == 1.0
    assert value("macro_f1", np.full((10, 2), np.nan), truth) == 0.0


def test_regression_metrics():
    truth = np.asarray([[1.0], [2.0], [3.0], [6.0]])
    outputs = truth + np.asarray([[0.5], [-0.5], [0.0], [1.0]])
    assert value("mae", outputs, truth) == -0.5
    variance = truth.var() * 4
    assert value("r2", outputs, truth[:, 0]) == pytest.approx(1 - 1.5 / variance)
    assert value("r2", np.full_like(truth, np.nan), truth) < -1e9


def test_exact_match_of_sequences_and_of_values():
    scores = np.eye(3)[np.asarray([[0, 1], [2, 2]])].astype(np.float32)
    assert value("exact_match", scores, np.asarray([[0, 1], [2, 0]])) == 0.5
    codes = np.asarray([[0, 1], [2, 2]])
    assert value("exact_match", codes, np.asarray([[0, 1], [2, 2]])) == 1.0


def test_the_bootstrap_bound_covers_and_is_the_same_each_time():
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(60):
        before = rng.normal(0, 1, (200, 1))
        after = before - rng.normal(0.1, 0.5, (200, 1))
        drop = bounds.bootstrap_drop(before, after, lambda m: m[..., 0], confidence=0.95)
        again = bounds.bootstrap_drop(before, after, lambda m: m[..., 0], confidence=0.95)
        assert drop == again
        missed += drop.upper < 0.1
    assert missed <= 9  # 3 expected; 9 or fewer with probability 0.998


def test_f1_of_a_small_class_cannot_be_proven_unchanged():
    truth = np.asarray([0] * 990 + [1] * 10)
    metric = METRICS["macro_f1"]
    rows = metric.score(np.eye(2)[truth], truth)
    drop = metric.drop(rows, rows, confidence=0.95)
    assert drop.estimate == 0.0
    assert drop.upper == pytest.approx(0.13, abs=0.01)  # mean of 0.003 and 1 - 0.05 ** 0.1


def test_a_metric_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "mine_metrics.py").write_text(
        "def close(outputs, truth):\n    return (abs(outputs - truth) < 0.5).all(axis=1) * 1.0\n"
        "def wrong(outputs, truth):\n    return 1.0\n"
        "def broken(outputs, truth):\n    return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    metric = metric_of("mine_metrics:close")
    assert metric.value(metric.score(np.zeros((4, 1)), np.asarray([[0], [1], [0], [2]]))) == 0.5
    for name, message in (("wrong", "gave shape"), ("broken", "ZeroDivisionError")):
        with pytest.raises(BadInputError, match=message):
            metric_of(f"mine_metrics:{name}").score(np.zeros((4, 1)), np.zeros((4, 1)))
    for name in ("mine_metrics:none", "no_such_module:f", "beauty"):
        with pytest.raises(BadInputError, match=r"quality\.metric"):
            metric_of(name)


def boxes(*rows):
    return np.asarray([rows], dtype=np.float64)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (boxes((0, 0, 10, 10, 0.9, 1), (20, 20, 30, 30, 0.8, 2)), 1.0),
        (boxes((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 10, 0.8, 1)), 0.5),  # one box is found once
        (boxes((0, 0, 10, 10, 0.9, 2), (20, 20, 30, 30, 0.8, 2)), 0.5),  # of another class
        (boxes((0, 0, 10, 10, 0.4, 1), (20, 20, 30, 30, 0.8, 2)), 2 / 3),  # not sure enough
        (boxes((0, 0, 10, 4, 0.9, 1), (20, 20, 30, 30, 0.8, 2)), 0.5),  # overlaps too little
        (boxes((0, 0, 10, np.nan, 0.9, 1), (20, 20, 30, 30, 0.8, 2)), 2 / 3),
    ],
)
def test_detections_are_right_by_class_and_overlap(answers, expected):
    truth = boxes((0, 0, 10, 10, 1), (20, 20, 30, 30, 2), (0, 0, 0, 0, -1))
    metric = METRICS["iou_f1"]
    assert metric.value(metric.score(answers, truth)) == pytest.approx(expected)


def test_nothing_to_find_and_nothing_found_is_right():
    metric = METRICS["iou_f1"]
    scores = metric.score(boxes((0, 0, 1, 1, 0.1, 0)), boxes((0, 0, 0, 0, -1)))
    assert metric.value(scores) == 1.0
