"""The recipes of real models are what the study measured, or say that they were not measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from benchmarks.evidence.cells import Cell, key_of, tuning
from benchmarks.evidence.methods import METHODS
from benchmarks.evidence.obedience import RULE
from benchmarks.evidence.pools import COMMON
from benchmarks.evidence.settings import SETTINGS, SIZES
from benchmarks.records import RESULTS, load
from pad_fast.preference.options import LossOptions

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# The study's setting of a recipe, and its name of each method: the first is the run's own.
MEASURED = {
    "smollm2-prompted": (
        "prompted",
        {None: "seqkd", "PAD": "ppd_kl", "DPO": "dpo", "RFT": "rft", "composed": "weighted_kl"},
    ),
    "smollm2-135m": (
        "smollm2",
        {None: "weighted_kl", "PAD": "ppd_kl", "DPO": "dpo", "RFT": "rft", "SeqKD": "seqkd"},
    ),
}
PARTS = {"teacher": "teacher", "own": "own", "pair": "pair", "best": "best", "all": "mixed"}


@pytest.mark.parametrize("name", MEASURED)
def test_a_recipe_is_what_the_study_measured(name) -> None:
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    setting, methods = MEASURED[name]
    size, world = SIZES[setting], SETTINGS[setting].world
    known = {key_of(record): record for record in load(RESULTS, "evidence")}
    for title, method in methods.items():
        options, given = METHODS[method].options, dict(recipe)
        if title is not None:
            given |= recipe["compare"][title]
        tried = tuning(Cell(setting, setting, 1, 1, method), size)
        best = max(tried, key=lambda cell: known[cell.key]["score"])
        assert {key: given.get(key, vars(LossOptions()).get(key)) for key in options} == options
        assert PARTS[given["train_on"]] == METHODS[method].reads
        assert given["learning_rate"] == best.learning_rate, title
        assert best.beta is None or given["beta"] == best.beta, title
    assert recipe["temperature"] == COMMON["temperature"]
    assert recipe["dtype"] == world.options["dtype"]
    assert recipe["num_generations"] == size.generations
    assert recipe["max_new_tokens"] == world.longest
    assert recipe["per_device_train_batch_size"] == size.batch


def test_the_recipe_has_the_rule_that_is_graded() -> None:
    recipe = yaml.safe_load((RECIPES / "smollm2-prompted.yaml").read_text())
    assert recipe["teacher_system_prompt"] == RULE
    assert recipe["student"] == recipe["teacher"]


def test_a_recipe_that_was_not_measured_says_so() -> None:
    for path in RECIPES.glob("*.yaml"):
        unsaid = path.stem not in MEASURED and path.stem != "blank"
        said = re.search("not (measured|run) this recipe yet", path.read_text())
        assert bool(said) == unsaid, path
