"""Every number among the settings has a range, and what is outside of it is refused by name."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, get_args, get_type_hints

import pytest
from commands import failing
from students import RENAMED
from worlds import changed_config, run_config

from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.number_rules import RULES as RUN_RULES
from pad_fast.training.config import WITHOUT_EFFECT, PADConfig
from pad_fast.training.number_rules import RULES as TRAINING_RULES
from pad_fast.training.number_rules import NumberRule, real, whole

pytestmark = RENAMED

HOSTILE = (math.nan, math.inf, -math.inf, -1, 10**20)
ALLOWED = {
    ("max_steps", -1): "not set: the number of epochs counts",
    ("local_rank", -1): "no launcher set it",
    ("max_grad_norm", math.inf): "clips nothing, and the norm is still logged",
    ("max_grad_norm", 10**20): "the same",
}


def numeric_fields(kind: type) -> list[str]:
    hints = get_type_hints(kind)
    fields = (field.name for field in dataclasses.fields(kind) if field.init)
    return [name for name in fields if {int, float} & {hints[name], *get_args(hints[name])}]


RUN, TRAINING = numeric_fields(RunConfig), numeric_fields(PADConfig)


def test_every_number_has_a_rule():
    assert set(RUN) == set(RUN_RULES)
    assert set(TRAINING) == set(TRAINING_RULES) | (set(TRAINING) & set(WITHOUT_EFFECT))
    assert len(RUN) > 15
    assert len(TRAINING) > 30


@pytest.mark.parametrize("name", RUN)
def test_numbers_of_a_run(tmp_path, name):
    for value in HOSTILE:
        with pytest.raises(ValueError, match=rf"^{name}: must be .*, got {re.escape(repr(value))}"):
            run_config(tmp_path, **{name: value})


@pytest.mark.parametrize("name", TRAINING)
def test_numbers_of_a_training(tmp_path, name):
    for value in HOSTILE:
        options: dict[str, Any] = {name: value, "output_dir": str(tmp_path), "use_cpu": True}
        if (name, value) in ALLOWED:
            assert getattr(PADConfig(**options), name) == value
        else:
            with pytest.raises(
                ValueError, match=rf"^{name} must be .*got {re.escape(repr(value))}"
            ):
                PADConfig(**options)


def test_defaults_keep_their_rules():
    for kind, rules in ((RunConfig, RUN_RULES), (PADConfig, TRAINING_RULES)):
        for field in dataclasses.fields(kind):
            if field.name in rules and field.default is not None:
                assert rules[field.name].problem(field.default) is None, field.name


def test_ends_of_a_range():
    ends = NumberRule(0, 1, whole=False, above=True, below=True, others=(5,))
    assert [value for value in (0, 1e-9, 0.5, 1 - 1e-9, 1, 5) if ends.problem(value) is None] == [
        1e-9,
        0.5,
        1 - 1e-9,
        5,
    ]
    assert whole(1, 3).problem(1.5) == "must be a whole number from 1 to 3, got 1.5"
    assert whole(1, 3).problem(2.0) is None
    assert whole(1, 3).problem(True) is not None
    assert real(0, 1).problem("1") is not None


@pytest.mark.parametrize(
    "word",
    ["seed=100000000000000000000", "temperature=.inf", "rounds=1000000000", "learning_rate=.nan"],
)
def test_numbers_of_a_yaml_file(world, tmp_path, capsys, word):
    name, _, value = word.partition("=")
    config = changed_config(world, tmp_path)
    lines = [line for line in config.read_text().splitlines() if not line.startswith(f"{name}:")]
    config.write_text("\n".join([*lines, f"{name}: {value}"]) + "\n")
    assert failing(capsys, "run", config).startswith(f"pad-fast: {name}")
    assert not (tmp_path / "run").exists()
