"""Intervals and paired comparisons of measures that are kept for each prompt of each run.

A run is a base student with a seed. Intervals hold for other prompts and for other seeds of the
same base students: three students are too few to speak for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

Pair = tuple[int, int]  # a base student and a seed
DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Runs:
    """A measure of R runs on the same P prompts.

    Args:
        values: (R, P), NaN where it does not apply.
        pairs: the base student and the seed of each run.
    """

    values: np.ndarray
    pairs: tuple[Pair, ...]

    def __sub__(self, other: Runs) -> Runs:
        """The paired difference, prompt by prompt and run by run."""
        assert self.pairs == other.pairs
        return Runs(self.values - other.values, self.pairs)


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its interval of 95%."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(runs: Runs, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean over runs and prompts, and its interval of 95%.

    mean ± t * sqrt(v_prompts + v_seeds), where v_prompts is the variance of the mean when prompts
    are drawn anew (bootstrap), v_seeds = s^2 / R with the variance s^2 of the runs' means between
    seeds of one student, pooled over the students, and t is Student's quantile at Satterthwaite's
    degrees of freedom. Without two seeds of a student it holds for these runs alone.

    Args:
        runs: a measure, or a difference of two.
        draws: resamples.
        seed: of the resamples.
    """
    known = ~np.isnan(runs.values)
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan)
    count = runs.values.shape[1]
    totals, known_in = np.nansum(runs.values, 0), known.sum(0)  # over runs, for each prompt
    mean = totals.sum() / known_in.sum()
    drawn = _drawn(count, draws, seed)
    counts = drawn @ known_in
    means = (drawn @ totals)[counts > 0] / counts[counts > 0]
    parts = [(float(np.var(means)), count - 1), _between_seeds(runs)]
    spread = sum(variance for variance, _ in parts)
    if spread == 0:
        return Estimate(float(mean), float(mean), float(mean))
    freedom = spread**2 / sum(v**2 / max(1, degrees) for v, degrees in parts)
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * spread**0.5
    return Estimate(float(mean), float(mean - half), float(mean + half))


@cache
def _drawn(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of the prompts is drawn, (draws, count)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _between_seeds(runs: Runs) -> tuple[float, int]:
    """The variance of the mean that comes from seeds, and its degrees of freedom."""
    means: dict[int, list[float]] = {}  # by student, one for each run
    for (student, _), row in zip(runs.pairs, runs.values, strict=True):
        if not np.isnan(row).all():
            means.setdefault(student, []).append(float(np.nanmean(row)))
    count = sum(map(len, means.values()))
    degrees = count - len(means)
    if not degrees:
        return 0.0, 0
    squares = sum(float(np.var(group)) * len(group) for group in means.values())
    return squares / degrees / count, degrees


@dataclass(frozen=True)
class WinRate:
    """The shares of pairs that the first wins, ties and loses, and the interval of win - loss."""

    win: float
    tie: float
    loss: float
    lead: Estimate


def win_rate(first: Runs, second: Runs, tie: float = 1e-4) -> WinRate:
    """How often the first of two models does better on the same prompt of the same run.

    Args:
        first, second: a measure of which more is better.
        tie: differences up to this are ties.
    """
    difference = (first - second).values
    known = ~np.isnan(difference)
    won, lost = (difference > tie), (difference < -tie)
    lead = np.where(known, won.astype(float) - lost.astype(float), np.nan)
    count = known.sum()
    win, loss = won.sum() / count, lost.sum() / count
    estimate = interval(Runs(lead, first.pairs))
    return WinRate(float(win), float(1 - win - loss), float(loss), estimate)
