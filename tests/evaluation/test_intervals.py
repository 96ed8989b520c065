"""Intervals over prompts: seeded, as wide as the standard error says, and paired."""

from __future__ import annotations

import numpy as np
import pytest

from pad_fast.evaluation import intervals
from pad_fast.evaluation.evaluated_model import Evaluated, RewardPair
from pad_fast.evaluation.intervals import difference_interval, mean_interval
from pad_fast.evaluation.reported_metrics import METRICS, measure, values_by_prompt
from pad_fast.evaluation.reported_metrics import intervals as intervals_of


def test_it_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(3).normal(2.0, 1.5, 400)
    low, high = mean_interval(values)
    error = np.std(values) / np.sqrt(len(values))
    assert low == pytest.approx(np.mean(values) - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(np.mean(values) + 1.96 * error, abs=0.1 * error)


def test_it_is_the_same_each_time_and_in_any_pieces(monkeypatch):
    values = np.array([0.0, 1.0, 0.5, 1.0, 0.25])
    first = mean_interval(values)
    assert mean_interval(values) == first
    monkeypatch.setattr(intervals, "AT_ONCE", 7)
    assert mean_interval(values) == first


def test_prompts_without_a_value_do_not_count():
    nan = np.nan
    assert mean_interval(np.array([1.0, nan, 0.0, nan])) == mean_interval(np.array([1.0, 0.0]))
    assert mean_interval(np.array([1.0, nan])) is None
    assert mean_interval(np.array([nan, nan])) is None
    assert mean_interval(np.ones(100)) is None  # 100% of 100 are right, which is not certain


def test_a_difference_is_taken_prompt_by_prompt():
    base, more = np.random.default_rng(0).normal(0.0, 5.0, (2, 50))
    low, high = difference_interval(base + 0.25 + 0.001 * more, base)
    assert (low, high) == pytest.approx((0.25, 0.25), abs=0.01)
    one, other = np.array([1.0, np.nan, 2.0]), np.array([0.0, 1.0, np.nan])
    assert difference_interval(one, other) is None


def test_each_metrics_mean_over_prompts_is_the_metric():
    rng = np.random.default_rng(1)
    texts = [[str(number) for number in rng.integers(0, 3, 4)] for _ in range(12)]
    rows = [
        {
            "answer": "1" if place % 4 else None,
            "skill": None,
            "completions": group,
            "completion_ids": [[5] * (1 + place)] * 4,
        }
        for place, group in enumerate(texts)
    ]
    student, teacher = rng.normal(size=(2, 12, 4)).tolist()
    teacher[3][1] = None
    pair = RewardPair(student, teacher)
    losses = [None, *rng.random(11).tolist()]
    evaluated = Evaluated(rows, rows, {}, pair, pair, losses, pair.teacher)
    values, measured = values_by_prompt(evaluated), measure(evaluated)
    assert set(values) == {key for key, metric in METRICS.items() if metric.by_prompt}
    ends = intervals_of(values)
    for key, of_prompts in values.items():
        assert len(of_prompts) == len(rows)
        assert measured[key] == pytest.approx(np.nanmean(of_prompts), abs=1e-12)
        assert ends[key][0] <= measured[key] <= ends[key][1]
