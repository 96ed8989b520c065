"""Every setting is in one group, and in the documents that are made from them."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.phases import OF_BENCHMARKS
from pad_fast.pipeline.setting_groups import (
    MOST_USED,
    OTHER_UNITS,
    TRAINERS,
    UNITS,
    setting_groups,
)
from pad_fast.pipeline.settings import NO_SETTINGS
from pad_fast.training.config import PADConfig
from tools.settings_page import settings_page

EVERY = {field.name for kind in (RunConfig, PADConfig) for field in dataclasses.fields(kind)}


@pytest.fixture(scope="module")
def settings():
    return {each.name: each for group in setting_groups().values() for each in group}


def test_every_setting_is_in_one_group_and_has_help(settings):
    names = [each.name for group in setting_groups().values() for each in group]
    assert len(names) == len(set(names))
    init = {f.name for kind in (RunConfig, PADConfig) for f in dataclasses.fields(kind) if f.init}
    assert set(names) == init - NO_SETTINGS
    assert [name for name, each in settings.items() if len(each.help) < 10] == []
    assert {each.name for each in setting_groups()["benchmarks"]} == OF_BENCHMARKS


def test_names_in_tables_are_settings(settings):
    named = {*MOST_USED, *OTHER_UNITS, *(name for names in TRAINERS.values() for name in names)}
    assert named - settings.keys() == {"num_processes", "accelerate_config"}  # flags of a launch


def test_what_a_setting_says_of_itself(settings):
    assert settings["temperature"].shown_default == "0.8"  # the run's, not PADConfig's
    assert settings["max_new_tokens"].unit == "tokens"
    assert settings["server_timeout"].unit == "seconds"
    assert settings["num_generations"].rule == "a whole number from 2 to 65,536"
    assert settings["load_best_round"].shown_default == "true"
    assert settings["benchmark_suffix"].shown_default == "''"
    assert settings["adam_epsilon"].shown_default == "1.0e-08"  # 1e-08 is a text in YAML
    assert settings["learning_rate"].rule == "a number from 0 to 1,000"
    assert settings["max_steps"].rule == "a whole number of at least 1, or -1"
    assert settings["heldout_size"].shown_default == ""
    assert "One of adamw_torch, adamw_torch_fused," in settings["optim"].help
    assert "Only false is taken, since checkpoints" in settings["save_only_model"].help
    assert {each.unit for each in settings.values()} <= {"", *UNITS, *OTHER_UNITS.values()}


def test_the_page_has_every_field_with_its_default():
    page = settings_page()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.M))
    assert {name for name in EVERY if f"`{name}`" not in page} == set()
    assert rows["num_generations"] == "`4`"
    assert rows["num_processes"] == "–"
    assert all(line.count(" | ") == 3 for line in page.splitlines() if line.startswith("| `"))
