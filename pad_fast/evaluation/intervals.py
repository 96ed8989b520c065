"""How much a mean over prompts, or a difference of two, would vary with other prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
AT_ONCE = 2_000_000  # numbers that are drawn together

Interval = tuple[float, float]
Values = NDArray[np.float64]


def mean_interval(values: Values) -> Interval | None:
    """The 95% interval of the mean of P prompts' values, by a bootstrap over the prompts.

    P of the prompts are drawn with replacement, 2,000 times, always with the same seed; the
    interval holds the middle 95% of the means.

    Args:
        values: (P,), NaN for a prompt that does not count.

    Returns:
        Its ends; None if all prompts that count have one value, of which no draw can tell how
        sure it is.

    Example:
        >>> mean_interval(np.array([0.0, 1.0, 1.0, 0.0, 1.0, np.nan]))
        (0.2, 1.0)
    """
    known = values[np.isfinite(values)]
    if not len(known) or (known == known[0]).all():
        return None
    rng, means, rest = np.random.default_rng(SEED), [], RESAMPLES
    while rest:
        rows = min(rest, max(1, AT_ONCE // len(known)))
        means.append(known[rng.integers(len(known), size=(rows, len(known)))].mean(1))
        rest -= rows
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def difference_interval(values: Values, base: Values) -> Interval | None:
    """The 95% interval of the mean difference of two models on the same prompts.

    Args:
        values: one model's, see :func:`mean_interval`.
        base: the other's, of the same prompts in the same order.

    Returns:
        Its ends; None where :func:`mean_interval` has none.
    """
    return mean_interval(values - base)
