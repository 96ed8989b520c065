"""The win rate at equal lengths, by a logistic regression on the difference of the lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTY = 0.1  # on phi, which keeps it finite where length alone decides
_TINY = 1e-9  # on theta, for a model that always wins
_STEPS, _LARGEST_STEP = 100, 2.0


def length_terms(model: Floats, baseline: Floats) -> Floats:
    """tanh of the difference of the lengths over its standard deviation, (G,).

    Args:
        model, baseline: lengths of the answers to G questions, in characters.
    """
    difference = model - baseline
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)


def length_controlled_rates(preferences: Floats, terms: Floats, weights: Floats) -> Floats:
    r"""The share of answers that would be preferred if both models' answers had one length, (B,).

    With the preference p_g of answer g, its weight w_g and its length term x_g::

        x_g = tanh((len_model - len_baseline) / std(len_model - len_baseline))
        theta, phi = argmax  sum_g w_g [p_g log s_g + (1 - p_g) log(1 - s_g)] - 0.05 phi^2
        where s_g = sigmoid(theta + phi x_g)
        rate = sigmoid(theta)

    Args:
        preferences: (G,) from 0 to 1, the probability that the judge prefers the model's answer.
        terms: (G,) as :func:`length_terms` gives them.
        weights: (B, G) how often each answer counts, in each of B samples.

    Notes:
        This is AlpacaEval 2's regression (arXiv 2404.04475) without its term for the difficulty of
        an instruction, which it takes from a leaderboard of models under one judge; and with a
        small quadratic penalty in place of a cross-validated one.
    """
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        share = _sigmoid(theta[:, None] + phi[:, None] * terms)  # (B, G)
        rest, curve = weights * (preferences - share), weights * share * (1 - share)
        slope_theta = rest.sum(1) - _TINY * theta
        slope_phi = (rest * terms).sum(1) - PENALTY * phi
        a, b = curve.sum(1) + _TINY, (curve * terms).sum(1)
        c = (curve * terms**2).sum(1) + PENALTY
        determinant = a * c - b * b
        step_theta = (c * slope_theta - b * slope_phi) / determinant
        step_phi = (a * slope_phi - b * slope_theta) / determinant
        theta += np.clip(step_theta, -_LARGEST_STEP, _LARGEST_STEP)
        phi += np.clip(step_phi, -_LARGEST_STEP, _LARGEST_STEP)
        if max(np.abs(step_theta).max(), np.abs(step_phi).max()) < 1e-10:
            break
    return _sigmoid(theta)


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * values))
