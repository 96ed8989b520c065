"""Work that is tried on models of a few layers: which layers, and what becomes of the times."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from planned_runs import config_of
from transformers import AutoTokenizer, Gemma2Config, LlamaConfig

from pad_fast.models import layout_trial, output_head
from pad_fast.models.auto import build_model
from pad_fast.pipeline.arguments import parse_with
from pad_fast.plan import trials
from pad_fast.plan.forecast import Fallback, make_case
from pad_fast.plan.options import PlanOptions
from pad_fast.plan.training_trial import StepTimes
from pad_fast.plan.trials import Trials, depths, shortened


def test_depths_differ_by_whole_periods_of_kinds_of_layers():
    kinds = ["sliding_attention", "full_attention"]
    assert depths(LlamaConfig(num_hidden_layers=32)) == (1, 3)
    assert depths(Gemma2Config(num_hidden_layers=26, layer_types=13 * kinds)) == (2, 4)
    small = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    assert depths(LlamaConfig(num_hidden_layers=30, **small)) == (30, 30)  # tried as a whole


def test_a_shortened_configuration_builds_the_first_layers():
    config = Gemma2Config(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=32,
    )
    few = shortened(config, 2)
    with torch.device("meta"):
        assert len(build_model(few).model.layers) == 2
    assert few.layer_types == ["sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 4


def test_a_whole_model_has_the_time_of_its_layers():
    assert trials._line(5.0, 9.0, (1, 3), 10) == 5.0 + 2.0 * 9
    assert trials._line(5.0, 4.0, (1, 3), 10) == 5.0  # noise: a layer takes no less than nothing
    assert trials._line(5.0, 5.0, (1, 1), 1) == 5.0


def test_every_kind_of_work_is_tried(world, tmp_path, monkeypatch):
    path = config_of(world, tmp_path, teacher_response="greedy")
    case = make_case(*parse_with("plan", [str(path)], PlanOptions))
    tried = Trials(case)
    first, token = tried.sampling("student", 3, 2)
    assert first > 0
    assert token > 0
    assert tried.sampling("teacher", 0, 2)[1] > 0
    assert tried.scoring("teacher", 3, 2) > 0
    assert tried.trying("teacher", 3, 2) > 0
    assert tried.asking(3, 6) > 0
    assert tried.loading("student") > 0
    settings = case.train_settings
    assert tried.micro_batch(settings) > 0
    assert tried.step(settings) > 0
    assert tried.answers(4) > 0
    whole = StepTimes(1.0, 2.0, 3.0)
    monkeypatch.setattr(trials, "trained_answers", lambda case, model, batch: whole)
    assert Trials(case).answers(8) == pytest.approx(2 * 1.0 + 2.0)  # two micro-batches of four


def test_the_loading_of_a_model_is_tried_with_its_tokenizer(world, tmp_path, monkeypatch):
    tried = Trials(make_case(*parse_with("plan", [str(config_of(world, tmp_path))], PlanOptions)))
    loaded = []

    def from_pretrained(path, **options):
        loaded.append(path)
        return SimpleNamespace(chat_template="a template")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    for role in ("student", "teacher"):
        assert tried.loading(role) > 0
    assert loaded == [tried.case.model(role).path for role in ("student", "teacher")]


def test_the_output_head_is_checked_before_first_scores(world, tmp_path, monkeypatch):
    """With one response to a prompt that is all: there are no layouts to try."""
    tried = Trials(make_case(*parse_with("plan", [str(config_of(world, tmp_path))], PlanOptions)))
    checked, check = [], output_head._disagreement
    monkeypatch.setattr(
        output_head, "_disagreement", lambda model: checked.append(model) or check(model)
    )
    for n in (1, 2):
        checked.clear()
        assert tried.trying("teacher", n, 4) > 0
        assert len(checked) == trials.CALLS


def test_layouts_are_tried_anew_for_every_number_of_responses(world, tmp_path, monkeypatch):
    """A choice is kept with its model, and would take no time when it is asked for again."""
    path = config_of(world, tmp_path)
    tried = Trials(make_case(*parse_with("plan", [str(path)], PlanOptions)))
    made, difference = [], layout_trial._difference
    monkeypatch.setattr(
        layout_trial, "_difference", lambda *given: made.append(1) or difference(*given)
    )
    monkeypatch.setattr(trials, "CALLS", 1)
    for n in (2, 3):
        assert tried.trying("student", n, 4) > 0
    assert len(made) == 2


def test_what_cannot_be_tried_is_by_the_rates_and_said():
    class Rates:
        def scoring(self, role, n, prompts):
            return 7.0

    class Broken:
        def scoring(self, role, n, prompts):
            raise RuntimeError("no memory\nfor that")

    notes: list[str] = []
    speeds = Fallback(Broken(), Rates(), notes)
    assert [speeds.scoring("teacher", 2, 4) for _ in range(2)] == [7.0, 7.0]
    assert notes == ["scoring could not be tried, and is by the machine's rates: no memory"]
