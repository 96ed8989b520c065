"""Intervals and paired comparisons of measures that are kept for each prompt of each run.

A matrix (R, P) holds a measure of R runs (a base student with a seed) on the same P prompts, NaN
where it does not apply.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(values_RP: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean over runs and prompts, and its bootstrap interval of 95%.

    Runs and prompts are drawn anew, with replacement, each independently of the other: an interval
    then holds for other prompts and for other runs. With one run it holds for that run alone.

    Args:
        values_RP: a measure, or a difference of two.
        draws: resamples.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    runs, prompts = values_RP.shape
    known = ~np.isnan(values_RP)
    filled = np.where(known, values_RP, 0.0)
    # How often each run and prompt is drawn, (draws, R) and (draws, P).
    run_counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=draws)
    prompt_counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    totals = np.einsum("dr,rp,dp->d", run_counts, filled, prompt_counts, optimize=True)
    counts = np.einsum("dr,rp,dp->d", run_counts, known.astype(float), prompt_counts, optimize=True)
    means = totals[counts > 0] / counts[counts > 0]
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(filled.sum() / known.sum()), float(low), float(high))


@dataclass(frozen=True)
class WinRate:
    """The shares of pairs that the first wins, ties and loses, and the interval of win - loss."""

    win: float
    tie: float
    loss: float
    lead: Estimate


def win_rate(first_RP: np.ndarray, second_RP: np.ndarray, tie: float = 1e-4) -> WinRate:
    """How often the first of two models does better on the same prompt of the same run.

    Args:
        first_RP, second_RP: a measure of which more is better.
        tie: differences up to this are ties.
    """
    difference = first_RP - second_RP
    known = ~np.isnan(difference)
    won, lost = (difference > tie), (difference < -tie)
    lead = np.where(known, won.astype(float) - lost.astype(float), np.nan)
    count = known.sum()
    win, loss = won.sum() / count, lost.sum() / count
    return WinRate(float(win), float(1 - win - loss), float(loss), interval(lead))
