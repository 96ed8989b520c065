"""What multiple choice does to rewards: numbers by hand, and the sentence about them."""

from __future__ import annotations

import pytest

from pad_fast.evaluation.choice import ChoiceEffect, choice_effect
from pad_fast.pipeline.score.metrics import choice_metrics


def test_the_effect_of_two_prompts():
    found = choice_effect(
        [6, 2],
        rewards=[[-1.0, -2.0, -4.0], [-1.0, -3.0, None]],
        choices=[[-0.5, -0.4, -0.6], [-0.2, -0.9, None]],
        calibrated=[[-2.0, -1.0, -4.0], [-1.0, -3.0, None]],
    )
    assert found is not None
    assert (found.questions, found.reward_spread) == (4.0, 2.5)
    assert found.choice_spread == pytest.approx((0.2 + 0.7) / 2)
    assert found.calibrated_spread == 2.5
    # The first prompt's calibration turns one of its three pairs round, and so do its choices.
    assert found.reordered == pytest.approx((1 / 3 + 0) / 2)
    assert found.kendall_tau == pytest.approx((1 / 3 + 1) / 2)
    assert found.pays
    assert ChoiceEffect.logged(found.metrics()) == found


def test_nothing_asked_and_nothing_ranked():
    assert choice_effect([], [], [], []) is None
    assert ChoiceEffect.logged({"mcq/questions": 2.0}) is None
    tied = choice_effect([2], [[-1.0, -1.0]], [[-0.7, -0.7]], [[-1.0, -1.0]])
    assert tied is not None
    assert (tied.kendall_tau, tied.reordered, tied.pays) == (None, None, False)
    assert "no pair" in tied.sentence()
    assert ChoiceEffect.logged(tied.metrics()) == tied


def test_what_the_sentence_says():
    def said(spread: float, reordered: float) -> str:
        return ChoiceEffect(12, 1.64, spread, 0.83, 0.4, reordered).sentence()

    assert said(0.09, 0.018).startswith(
        "multiple choice does not discriminate here: it costs 12 questions a prompt and changes "
        "the order of 2% of pairs"
    )
    assert said(1.5, 0.018).startswith("multiple choice changes little here: it costs")
    assert said(1.5, 0.2).startswith("multiple choice costs 12 questions a prompt and changes")
    assert "0.09, of the rewards 1.64 before and 0.83 after" in said(0.09, 0.018)


def test_the_place_that_is_liked_most_is_reported():
    last = [([0.2, 0.2, 0.6], 0.5), ([0.3, 0.1, 0.6], 0.7)]
    assert choice_metrics(last) == pytest.approx(
        {"mcq/position_bias": 0.6 - 1 / 3, "mcq/letter_mass": 0.6}
    )
    pairs = [([0.3, 0.7], 1.0), ([0.1, 0.9], 1.0)]  # the sign is that of the first letter
    assert choice_metrics(pairs)["mcq/position_bias"] == pytest.approx(-0.3)
    mixed = [([0.9, 0.1], 1.0), ([0.9, 0.05, 0.05], 1.0)]  # a masked response leaves two letters
    assert choice_metrics(mixed)["mcq/position_bias"] == pytest.approx((0.4 + 0.9 - 1 / 3) / 2)
    assert choice_metrics([]) == {}
    some = choice_metrics([([0.5, 0.5], 1.0), ([0.05, 0.95], 0.5)], [True, False])
    assert some == pytest.approx({"mcq/position_bias": 0.0, "mcq/letter_mass": 0.75})
    assert choice_metrics(pairs, [False, False]) == {"mcq/letter_mass": 1.0}
