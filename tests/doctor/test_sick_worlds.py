"""Worlds made sick on purpose: each verdict can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import worlds
from findings import check_verdict, doctor_config, findings
from transformers import AutoModelForCausalLM, GenerationConfig

from pad_fast.pipeline.findings import rewards
from pad_fast.pipeline.score import model_scores


def edited(world: Path, folder: Path, role: str, change) -> Path:
    """A copy of a model of the world, after ``change(model)``."""
    model = AutoModelForCausalLM.from_pretrained(world / role)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    worlds.character_tokenizer().save_pretrained(folder)
    return folder


def test_student_that_never_ends(world, tmp_path):
    def never(model) -> None:
        model.lm_head.weight *= 4000  # every next token is almost certain
        model.lm_head.weight[model.config.eos_token_id] = 0

    found = findings(
        doctor_config(
            world, tmp_path, student=str(edited(world, tmp_path / "student", "student", never))
        )
    )
    check_verdict(found["end of response"], "problem", "max_new_tokens", "generation_config.json")
    check_verdict(found["clipped"], "problem", "max_new_tokens", "mask_truncated_completions")
    check_verdict(found["repeated"], "problem", "temperature", "num_generations")


def test_template_whose_end_of_turn_ends_nothing(world, tmp_path):
    def change(model) -> None:
        model.config.eos_token_id = 0
        model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)

    student = edited(world, tmp_path / "student", "student", change)
    tokenizer = worlds.character_tokenizer()
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(student)
    config = doctor_config(
        world, tmp_path, student=str(student), use_peft=True, learning_rate=8.0e-7
    )
    found = findings(config)
    check_verdict(found["end of response"], "problem", "add 1 to eos_token_id")
    check_verdict(found["adapter"], "look", "8e-6")


def test_constant_rewards(world, tmp_path):
    # Without weights in its head, the teacher gives log 1/V to every token.
    teacher = edited(
        world, tmp_path / "teacher", "teacher", lambda model: model.lm_head.weight.zero_()
    )
    found = findings(doctor_config(world, tmp_path, teacher=str(teacher), mcq_style="none"))
    check_verdict(found["reward spread"], "problem", "teacher_beta")
    assert "mcq" not in found["reward spread"].advice  # no question was asked
    assert found["reward spread"].numbers["share"] == 1.0
    check_verdict(found["agreement"], "problem", "reward spread")
    check_verdict(found["position bias"], "ok")
    # With another teacher, the rewards differ.
    check_verdict(
        findings(doctor_config(world, tmp_path, teacher=str(world / "teacher")))["reward spread"],
        "ok",
    )


def test_rewards_that_are_lengths(world, tmp_path):
    teacher = edited(
        world, tmp_path / "teacher", "teacher", lambda model: model.lm_head.weight.zero_()
    )
    found = findings(
        doctor_config(
            world,
            tmp_path,
            teacher=str(teacher),
            mcq_style="none",
            normalize="sum",
            max_new_tokens=60,
        )
    )
    check_verdict(found["length"], "problem", "shorter", "normalize: mean")
    assert found["length"].numbers["kendall_tau"] < -0.9


def test_teacher_that_is_the_student(world, tmp_path):
    found = findings(
        doctor_config(world, tmp_path, teacher=str(world / "student"), mcq_style="none")
    )
    check_verdict(found["agreement"], "problem", "stronger teacher")
    assert found["agreement"].numbers["kendall_tau"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("both", "first", "verdict"),
    [(True, 0.95, "problem"), (True, 0.65, "look"), (False, 0.65, "problem"), (True, 0.55, "ok")],
)
def test_teacher_that_likes_a_letter(world, tmp_path, monkeypatch, both, first, verdict):
    def stub(model, prompts, tokens, **options):
        # Each letter has one form, since this tokenizer has none with a space in front.
        assert len(tokens) == 2
        return [torch.tensor([first, 1 - first]).mul(0.9).log().tolist() for _ in prompts]

    monkeypatch.setattr(model_scores, "next_token_logprobs", stub)
    found = findings(doctor_config(world, tmp_path, mcq_every_place=both))
    check_verdict(
        found["position bias"],
        verdict,
        *(() if verdict == "ok" else ("mcq_weight", "mcq_template")),
    )
    assert ("mcq_every_place" in found["position bias"].advice) == (not both)
    assert found["position bias"].numbers["mean"] == pytest.approx(first - 0.5, abs=1e-6)
    check_verdict(found["letters"], "ok")


@pytest.mark.parametrize(("mass", "verdict"), [(0.01, "problem"), (0.3, "look"), (0.9, "ok")])
def test_teacher_that_does_not_answer_with_a_letter(world, tmp_path, monkeypatch, mass, verdict):
    monkeypatch.setattr(
        model_scores,
        "next_token_logprobs",
        lambda model, prompts, tokens, **_: (
            [torch.full((2,), mass / 2).log().tolist()] * len(prompts)
        ),
    )
    check_verdict(
        findings(doctor_config(world, tmp_path))["letters"],
        verdict,
        *(() if verdict == "ok" else ("mcq_template", "mcq_style")),
    )


def test_teacher_whose_window_is_too_short(world, tmp_path):
    teacher = worlds.save_model(tmp_path / "teacher", seed=1, window=40)
    found = findings(doctor_config(world, tmp_path, teacher=str(teacher)))
    check_verdict(found["position bias"], "problem", "max_new_tokens", "mcq_style")
    check_verdict(found["unscored"], "ok")
    # A teacher whose tokenizer needs more tokens than the student's cannot read every response.
    masked = [{"teacher_rewards": [None, -1.0, -1.2, -1.3]}, {"teacher_rewards": [-1.0] * 4}]
    check_verdict(rewards.masked(masked), "look", "max_new_tokens")
    check_verdict(rewards.masked([{"teacher_rewards": [None, None, -1.0, -1.0]}]), "problem")
