"""The limits of the verdicts, on rows made by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
from findings import check_verdict, doctor_config

from pad_fast.doctor.command import DoctorOptions
from pad_fast.pipeline.arguments import parse_with
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.findings import finding as findings
from pad_fast.pipeline.findings import responses, rewards


def rows(student: list[list[float]], teacher: list[list[float | None]]) -> list[dict]:
    return [
        {"student_rewards": s, "teacher_rewards": t} for s, t in zip(student, teacher, strict=True)
    ]


@pytest.mark.parametrize(("beta", "verdict"), [(0.01, "ok"), (100.0, "problem")])
def test_saturated_loss(world, tmp_path, beta, verdict):
    settings, _ = parse_with(
        "doctor", [str(doctor_config(world, tmp_path, beta=beta))], DoctorOptions
    )
    training = settings.pad_config(tmp_path / "x")
    opposite = rows([[0.0, 1.0, 2.0]] * 3, [[2.0, 1.0, 0.0]] * 3)
    check_verdict(
        rewards.saturated(opposite, training),
        verdict,
        *(() if verdict == "ok" else ("teacher_beta", "divergence: kl", "mcq_floor")),
    )
    for changes in ({"divergence": "kl"}, {"preference_weight": 0.0, "likelihood_weight": 1.0}):
        unending = dataclasses.replace(settings, training=settings.training | changes)
        check_verdict(rewards.saturated(opposite, unending.pad_config(tmp_path / "x")), "ok")


def test_opposite_rankings_and_lone_responses(world, tmp_path):
    check_verdict(
        rewards.agreement(rows([[0.0, 1.0, 2.0]] * 4, [[2.0, 1.0, 0.0]] * 4)),
        "look",
        "normalize",
    )
    fewer = rewards.agreement(rows([[0.0, 1.0, 2.0]] * 2, [[0.0, 2.0, None], [1.0, 2.0, 0.0]]))
    assert "by chance 42%" in fewer.found  # (1/2 + 1/3) / 2
    two_groups = rows([[0.0, 1.0, 2.0]] * 2, [[0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])
    check_verdict(rewards.agreement(two_groups), "ok")  # they prove nothing
    settings, _ = parse_with("doctor", [str(doctor_config(world, tmp_path))], DoctorOptions)
    check_verdict(
        rewards.flat_groups(rows([[0.0, 1.0]], [[None, 1.0]]), settings.pad_config(tmp_path / "x")),
        "problem",
        "max_new_tokens",
    )
    check_verdict(
        responses.length(
            [{"completion_ids": [[1], [1, 2]], "teacher_rewards": [1.0, 1.0]}],
            settings.run,
            settings.pad_config(tmp_path / "x"),
        ),
        "ok",
    )


@pytest.mark.parametrize(("value", "verdict"), [(0.0, "ok"), (0.1, "look"), (0.5, "problem")])
def test_limits_belong_to_the_worse_verdict(value, verdict):
    assert findings.grade(value, 0.1, 0.5) == verdict


def test_numbers_that_are_not_finite_are_a_problem():
    assert findings.grade(math.nan, 0.1, 0.5) == "problem"
    for numbers in ({"tau": math.nan}, {"taus": [0.5, math.inf]}):
        found = findings.Finding("any", "ok", "found", "raise beta", numbers)
        check_verdict(found, "problem", "float32")


def test_what_is_ok_needs_no_advice():
    for verdict in ("ok", "look"):
        check_verdict(findings.Finding("any", verdict, "found", "raise beta"), verdict)


def test_the_error_of_a_mean():
    assert findings.mean_and_error([0.25]) == (0.25, 1.0)
    mean, error = findings.mean_and_error([0.0, 0.5, 1.0, 0.5])
    assert (mean, error) == (0.5, pytest.approx((0.5 / 3) ** 0.5 / 2))


def effect(**changes: float) -> dict[str, float]:
    numbers = {
        "questions": 12.0,
        "reward_spread": 1.64,
        "choice_spread": 1.2,
        "calibrated_spread": 1.5,
        "kendall_tau": 0.4,
        "reordered": 0.2,
    }
    return {f"mcq/{name}": value for name, value in (numbers | changes).items()}


def test_multiple_choice_that_adds_nothing(world, tmp_path):
    settings, _ = parse_with("doctor", [str(doctor_config(world, tmp_path))], DoctorOptions)
    check_verdict(rewards.choices(effect(), settings.run), "ok")
    check_verdict(rewards.choices({}, settings.run), "ok")
    flat = rewards.choices(effect(choice_spread=0.09, reordered=0.018), settings.run)
    check_verdict(flat, "look", "mcq_style: none", "mcq_template")
    assert (
        "does not discriminate here: it costs 12 questions a prompt and changes the order of 2%"
        in (flat.found)
    )
    agreeing = rewards.choices(effect(reordered=0.01), settings.run)
    check_verdict(agreeing, "look", "mcq_style: none", "mcq_weight")
    assert agreeing.found.startswith("changes little here")


def test_a_position_bias_that_cannot_be_told_from_a_preference():
    config = RunConfig(student="s", teacher="t", prompts="x", output_dir="y", mcq_preset="released")
    asked = {"mcq/letter_mass": 0.9}
    check_verdict(rewards.position(asked, config, asks=True), "look", "mcq_every_place")
    check_verdict(rewards.position({}, config, asks=True), "problem", "mcq_style")
    check_verdict(rewards.position({}, config, asks=False), "ok")
