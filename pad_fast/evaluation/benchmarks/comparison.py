"""What a judge's comparisons of two models' answers amount to, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pad_fast.evaluation.benchmarks.length_control import length_controlled_rates, length_terms

Floats = NDArray[np.float64]

ALL = "all"
RESAMPLES, SEED = 1000, 0
_PERCENTILES = (2.5, 97.5)
_RATES = ("win_rate", "preference", "length_controlled")


@dataclass(frozen=True)
class Game:
    """A comparison of two answers, asked in both orders.

    Args:
        question: the question's id. Answers to several turns of one question are several games.
        category: the question's category; empty if it has none.
        first, second: the probability that the judge prefers the model's answer to the baseline's,
            where the model's stands first and where it stands second.
        model_length, baseline_length: characters of the two answers.
    """

    question: str | int
    category: str
    first: float
    second: float
    model_length: int
    baseline_length: int


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """The share in percent, with the interval."""
        return f"{100 * self.value:.1f}% ({100 * self.low:.1f}–{100 * self.high:.1f})"


@dataclass(frozen=True)
class Comparison:
    """What the judge's verdicts on some games amount to.

    Args:
        category: of the games; "all" for all of them.
        games, questions: their numbers.
        wins, ties, losses: games that the model wins in both orders, neither, or that it loses in
            both orders.
        win_rate: (wins + ties / 2) / games.
        preference: the mean probability that the judge prefers the model's answer.
        length_controlled: see :func:`~.length_control.length_controlled_rates`.
        flips: the share of games whose verdict changes with the order.
        kappa: Cohen's kappa of the verdicts in the two orders: 1 for one verdict always, 0 for
            what chance gives; None if all verdicts of both orders are the same one.
        first_place: the mean probability that the judge gives to whichever answer stands first.
    """

    category: str
    games: int
    questions: int
    wins: int
    ties: int
    losses: int
    win_rate: Rate
    preference: Rate
    length_controlled: Rate
    flips: float
    kappa: float | None
    first_place: float

    def row(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Comparison:
        """The record of what :meth:`row` gave."""
        rates = {name: Rate(**row[name]) for name in _RATES}
        return cls(**{**row, **rates})


def verdicts(probabilities: Floats, margin: float) -> Floats:
    """1 where the model is preferred, 0 where the baseline is, 1/2 within ``margin`` of even."""
    return np.where(
        probabilities > 0.5 + margin, 1.0, np.where(probabilities < 0.5 - margin, 0.0, 0.5)
    )


def compare(games: Sequence[Game], margin: float = 0.0) -> list[Comparison]:
    """The comparison over all games, and those of each category if there are several.

    Args:
        games: at least one.
        margin: a probability this close to 1/2 is no verdict.

    Raises:
        ValueError: there are no games, or the margin is not from 0 to below 1/2.

    Example:
        >>> won = Game("q1", "math", first=0.9, second=0.8, model_length=10, baseline_length=12)
        >>> split = Game("q2", "math", first=0.9, second=0.2, model_length=10, baseline_length=9)
        >>> found = compare([won, split])[0]
        >>> found.wins, found.ties, found.win_rate.value, found.flips
        (1, 1, 0.75, 0.5)
    """
    if not games:
        raise ValueError("games: must hold at least one, got none")
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin: must be from 0 to below 0.5, got {margin}")
    categories = sorted({game.category for game in games} - {""})
    found = [_comparison(ALL, games, margin)]
    if len(categories) > 1:
        for category in categories:
            chosen = [game for game in games if game.category == category]
            found.append(_comparison(category, chosen, margin))
    return found


def _comparison(category: str, games: Sequence[Game], margin: float) -> Comparison:
    first = np.array([game.first for game in games])
    second = np.array([game.second for game in games])
    orders = verdicts(first, margin), verdicts(second, margin)
    same = orders[0] == orders[1]
    scores = np.where(same, orders[0], 0.5)  # orders that disagree make a tie
    preferences = (first + second) / 2
    terms = length_terms(
        np.array([float(game.model_length) for game in games]),
        np.array([float(game.baseline_length) for game in games]),
    )
    weights, questions = _resamples(games)
    means = weights / weights.sum(1, keepdims=True)
    return Comparison(
        category,
        len(games),
        questions,
        int((scores == 1).sum()),
        int((scores == 0.5).sum()),
        int((scores == 0).sum()),
        _rate(means @ scores),
        _rate(means @ preferences),
        _rate(length_controlled_rates(preferences, terms, weights)),
        float(1 - same.mean()),
        _kappa(*orders),
        float((first + 1 - second).mean() / 2),
    )


def _resamples(games: Sequence[Game]) -> tuple[Floats, int]:
    """How often each game counts: in the first row once, in the others by drawing questions.

    All games of a question are drawn together, since they depend on one another.
    """
    names = list({game.question: None for game in games})
    index = np.array([names.index(game.question) for game in games])
    draws = np.random.default_rng(SEED).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES
    )
    counts = np.vstack([np.ones((1, len(names))), draws])
    return counts[:, index].astype(np.float64), len(names)


def _rate(values: Floats) -> Rate:
    """The value of the games themselves, which is the first, and the percentiles of the others."""
    low, high = np.percentile(values[1:], _PERCENTILES)
    return Rate(float(values[0]), float(low), float(high))


def _kappa(one: Floats, other: Floats) -> float | None:
    observed = float((one == other).mean())
    chance = sum(float((one == v).mean() * (other == v).mean()) for v in (0.0, 0.5, 1.0))
    if math.isclose(chance, 1.0):
        return None
    return (observed - chance) / (1 - chance)
