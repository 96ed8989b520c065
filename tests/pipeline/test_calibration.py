"""Rewards that multiple choice calibrates: the formulas, the presets and their scale."""

from __future__ import annotations

import math
import random

import pytest

from pad_fast.pipeline import calibration
from pad_fast.pipeline.calibration import PRESETS, calibrated_rewards, spread
from pad_fast.pipeline.config import RunConfig

WEIGHTS = (0.1, 0.5, 0.9, 0.99)


def order(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=values.__getitem__)


def draws(seed: int) -> tuple[list[float], list[float]]:
    """Rewards and log selection probabilities of two to eight responses, of any scale."""
    rng = random.Random(seed)
    n, scale = rng.randint(2, 8), 10 ** rng.uniform(-3, 2)
    return [rng.gauss(-2, 1) * scale for _ in range(n)], [rng.gauss(-1, 1) for _ in range(n)]


def test_the_papers_formula():
    assert calibrated_rewards([-2.0], [0.5], 1e-4, 0.25, "paper") == [
        0.75 * -2 + 0.25 * math.log(0.5)
    ]
    assert calibrated_rewards([-2.0], [0.0], 1e-8, 1.0, "paper") == [math.log(1e-8)]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_choices_that_say_nothing_leave_the_rewards(weight):
    """The paper's formula halves them at a weight of 0.5, and with them the teacher's beta."""
    rewards, same = [-1.0, -2.5, -2.64], [0.5, 0.5, 0.5]
    assert calibrated_rewards(rewards, same, 1e-4, weight, "scale_free") == rewards
    halved = calibrated_rewards(rewards, same, 1e-4, weight, "paper")
    assert spread(halved) == pytest.approx((1 - weight) * spread(rewards))
    nearly = calibrated_rewards(rewards, [0.5, 0.501, 0.499], 1e-4, 0.5, "scale_free")
    assert nearly == pytest.approx(rewards, abs=0.01)


@pytest.mark.parametrize("seed", range(200))
def test_the_scale_does_not_depend_on_the_weight(seed):
    rewards, choices = draws(seed)
    agreeing = [0.01 * choice for choice in rewards]  # the same order, a hundredth of the scale
    for weight in WEIGHTS:
        found = calibration.scale_free_mixture(rewards, choices, weight)
        paper = calibration.paper_mixture(rewards, choices, weight)
        assert order(found) == order(paper)
        assert spread(found) <= spread(rewards) * (1 + 1e-12)
        assert math.fsum(found) == pytest.approx(math.fsum(rewards))
        both = calibration.scale_free_mixture(rewards, agreeing, weight)
        assert both == pytest.approx(rewards)
    alone = calibration.scale_free_mixture(rewards, choices, 1.0)
    assert (order(alone), spread(alone)) == (order(choices), pytest.approx(spread(rewards)))


def test_ties_and_lone_responses():
    assert calibration.scale_free_mixture([-1.0, -1.0], [-3.0, -2.0], 0.5) == [-1.0, -1.0]
    assert calibration.scale_free_mixture([-1.0, -3.0], [-2.0, -2.0], 1.0) == [-2.0, -2.0]
    assert calibration.scale_free_mixture([-1.0], [-2.0], 0.5) == [-1.0]


def test_a_small_step_of_a_choice_is_a_small_step_of_the_reward():
    """Also where the two terms cancel: a scale of exactly r's spread would jump there."""
    low, high = (
        calibration.scale_free_mixture([-1.0, -3.0], [-3.0, -1.0 + step], 0.5)
        for step in (-1e-6, 1e-6)
    )
    assert low == pytest.approx(high, abs=1e-5)


def config_of(**changes) -> RunConfig:
    return RunConfig(student="s", teacher="t", prompts="x", output_dir="y", **changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_is_not_given(preset):
    config = config_of(mcq_preset=preset)
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]
    changed = config_of(mcq_preset=preset, mcq_weight=0.25, mcq_formula="paper")
    assert (changed.mcq_weight, changed.mcq_formula) == (0.25, "paper")
    assert changed.mcq_floor == PRESETS[preset]["mcq_floor"]


def test_the_default_is_scale_free_and_the_paper_is_a_preset():
    assert config_of().mcq_formula == "scale_free"
    assert config_of(mcq_preset="paper").mcq_formula == "paper"
    assert config_of(mcq_preset="released").mcq_weight == 1.0
    with pytest.raises(ValueError, match="mcq_formula: must be one of scale_free, paper"):
        config_of(mcq_formula="other")
