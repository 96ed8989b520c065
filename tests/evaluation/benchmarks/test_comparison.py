"""A judge's verdicts: counts, rates, intervals and the control of lengths."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize

from pad_fast.evaluation.benchmarks.comparison import Game, compare
from pad_fast.evaluation.benchmarks.length_control import (
    PENALTY,
    length_controlled_rates,
    length_terms,
)


def games(count: int = 200, seed: int = 0, fondness: float = 0.0, length: float = 0.0):
    """Games of a judge with a fondness for the first place, and for length, in logits."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        lengths = random.integers(50, 400, size=2)
        logit = random.normal(0.3, 1.0) + length * np.tanh((lengths[0] - lengths[1]) / 150)
        first, second = (1 / (1 + np.exp(-logit - sign * fondness)) for sign in (1, -1))
        category = ("math", "writing")[number % 2]
        found.append(Game(number, category, first, second, int(lengths[0]), int(lengths[1])))
    return found


def _overall(rows):
    """The comparison of rows of one category, which is quicker."""
    return compare([dataclasses.replace(row, category="") for row in rows])[0]


def test_counts_and_rates_by_hand():
    rows = [
        Game(1, "a", 0.9, 0.8, 10, 10),  # wins
        Game(2, "a", 0.9, 0.2, 10, 10),  # flips
        Game(3, "b", 0.3, 0.1, 10, 10),  # loses
        Game(4, "b", 0.6, 0.7, 10, 10),  # wins
    ]
    everything, a, b = compare(rows)
    assert (everything.wins, everything.ties, everything.losses) == (2, 1, 1)
    assert everything.win_rate.value == pytest.approx(2.5 / 4)
    assert everything.preference.value == pytest.approx((0.85 + 0.55 + 0.2 + 0.65) / 4)
    # Answers of one length have nothing to control: the rate is the mean preference.
    assert everything.length_controlled.value == pytest.approx(everything.preference.value)
    assert everything.flips == pytest.approx(1 / 4)
    # Both orders agree on 3 of 4; by chance (3/4 * 2/4 + 1/4 * 2/4) = 1/2
    assert everything.kappa == pytest.approx((3 / 4 - 1 / 2) / (1 / 2))
    assert everything.first_place == pytest.approx(
        ((0.9 + 0.2) + (0.9 + 0.8) + (0.3 + 0.9) + (0.6 + 0.3)) / 8
    )
    assert (a.category, a.games, b.category, b.games) == ("a", 2, "b", 2)
    assert (a.wins, a.ties, b.wins, b.losses) == (1, 1, 1, 1)


def test_a_margin_makes_ties():
    close = [Game(1, "", 0.55, 0.52, 5, 6), Game(2, "", 0.9, 0.9, 5, 7)]
    (found,) = compare(close, margin=0.1)
    assert (found.wins, found.ties, found.losses, found.flips) == (1, 1, 0, 0.0)
    with pytest.raises(ValueError, match=r"margin: must be from 0 to below 0\.5, got 0\.5"):
        compare(close, margin=0.5)
    with pytest.raises(ValueError, match="at least one"):
        compare([])


def test_intervals_hold_what_is_true():
    """Of questions that are drawn anew, 95% intervals hold the truth about that often."""
    many = games(50_000, seed=99)
    truth = sum((game.first + game.second) / 2 for game in many) / len(many)
    held = sum(
        found.preference.low <= truth <= found.preference.high
        for found in (_overall(games(100, seed=seed)) for seed in range(50))
    )
    assert 42 <= held <= 50


def test_turns_of_one_question_are_drawn_together():
    single = games(100)
    doubled = [game for game in single for _ in range(4)]
    one, other = compare(single)[0], compare(doubled)[0]
    assert (other.games, other.questions) == (400, 100)
    width = [found.win_rate.high - found.win_rate.low for found in (one, other)]
    assert width[1] == pytest.approx(width[0])  # four copies of a question tell no more than one


def test_the_regression_is_the_stated_maximum():
    rows = games(80, length=2.0)
    preferences = np.array([(game.first + game.second) / 2 for game in rows])
    terms = length_terms(
        np.array([float(game.model_length) for game in rows]),
        np.array([float(game.baseline_length) for game in rows]),
    )
    weights = np.random.default_rng(1).integers(0, 3, size=(2, 80)).astype(float)
    found = length_controlled_rates(preferences, terms, weights)
    for row, rate in zip(weights, found, strict=True):

        def loss(parameters, row=row):
            share = 1 / (1 + np.exp(-parameters[0] - parameters[1] * terms))
            fit = preferences * np.log(share) + (1 - preferences) * np.log(1 - share)
            return -(row * fit).sum() + PENALTY / 2 * parameters[1] ** 2

        theta = minimize(loss, np.zeros(2), tol=1e-12).x[0]
        assert rate == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-6)


def test_length_is_controlled_for():
    """A judge that loves length prefers a long-winded model, and an equal one at equal lengths."""
    random = np.random.default_rng(3)
    rows = []
    for number in range(400):
        baseline = int(random.integers(100, 300))
        model = baseline + int(random.integers(-50, 250))
        share = float(1 / (1 + np.exp(-2 * np.tanh((model - baseline) / 87))))
        rows.append(Game(number, "", share, share, model, baseline))
    (found,) = compare(rows)
    assert found.preference.value > 0.65
    assert abs(found.length_controlled.value - 0.5) < 0.02


def test_a_model_that_always_wins_has_finite_rates():
    rows = [Game(n, "", 1.0, 1.0, 10 + n, 10) for n in range(20)]
    (found,) = compare(rows)
    assert found.length_controlled.value == pytest.approx(1.0, abs=0.05)
    assert found.kappa is None
    assert np.isfinite(found.length_controlled.low)
    assert found.row()["win_rate"] == dataclasses.asdict(found.win_rate)


@pytest.mark.parametrize(
    ("second", "kappa"), [([0.9, 0.9], None), ([0.9, 0.1], 0.0), ([0.1, 0.1], 0.0)]
)
def test_kappa_is_unknown_only_where_both_orders_have_one_and_the_same_verdict(second, kappa):
    rows = [Game(str(n), "", 0.9, share, 10, 10) for n, share in enumerate(second)]
    assert compare(rows)[0].kappa == kappa


def test_a_fondness_for_the_first_place_shows():
    fair, fond = compare(games())[0], compare(games(fondness=1.5))[0]
    assert fair.first_place == pytest.approx(0.5)
    assert fair.flips == 0
    assert fond.first_place > 0.6
    assert fond.flips > 0.3
    assert fond.kappa is not None
    assert fond.kappa < 0.7
