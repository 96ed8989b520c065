"""The model card of the tiny world. Every figure in it is from `facts.json`."""

from __future__ import annotations

import textwrap
from typing import Any

from tiny_world.measure import SAMPLES
from tiny_world.tasks import SKILLS, draw_distinct

LABELS = {
    "student_samples": "the student's own samples at temperature 1",
    "slips": "the generator's mistakes",
}


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, 98)


def model_card(facts: dict[str, Any], sizes: dict[str, int]) -> str:
    """The text of README.md."""
    models = {name: facts[name] for name in ("teacher", "student")}
    parts = [
        ["# The tiny world"],
        paragraph(
            "A teacher, a student and prompts for a complete distillation run on two CPU cores. "
            "Both models are ordinary `transformers` Llamas in float32. `tools/make_tiny_world.py` "
            "trained them from random weights, measured them and wrote this page."
        ),
        example_lines(),
        model_lines(models),
        skill_lines(models),
        *choice_parts(facts["choices"]),
        *notes(facts["surroundings"], sizes),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def notes(surroundings: dict[str, str], sizes: dict[str, int]) -> list[list[str]]:
    counts = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
    # The standard error of a share is largest for a share of one half.
    error = percent(0.5 / sizes["heldout"] ** 0.5)
    skill_error = percent(0.5 / (sizes["heldout"] / len(SKILLS)) ** 0.5)
    return [
        paragraph(
            f"Prompts: {counts}. A hash of its text decides a prompt's split, so that no prompt is "
            "in two. Neither model was trained on a validation or held-out prompt. All figures are "
            f"measured on the held-out prompts: the standard error of a share is {error} or less, "
            f"and {skill_error} or less for a single skill."
        ),
        paragraph(
            f"Made on {surroundings['machine']}, with torch {surroundings['torch']} and "
            f"transformers {surroundings['transformers']}."
        ),
    ]


def example_lines() -> list[str]:
    chosen = {task.skill: task for task in draw_distinct(0, "heldout", 60)}
    lines = ["| skill | a prompt | the right response | a slip |", "|---|---|---|---|"]
    for skill in SKILLS:
        task = chosen[skill]
        lines.append(f"| {skill} | {task.prompt} | `{task.response}` | `{task.slips[0]}` |")
    return lines


def model_lines(models: dict[str, Any]) -> list[str]:
    rows = [
        ("parameters", lambda m: f"{m['parameters']:,}"),
        ("training", lambda m: f"{m['steps']:,} steps, {m['train_seconds']:,} s"),
        ("seed", lambda m: str(m["seed"])),
        ("right, greedy", lambda m: percent(m["greedy_accuracy"]["all"])),
        ("right, sampled at temperature 1", lambda m: percent(m["sampled_accuracy"]["all"])),
        (f"distinct of {SAMPLES} samples", lambda m: f"{m['distinct']:.2f}"),
        ("tokens of a sample, with its end of turn", lambda m: f"{m['mean_tokens']:.1f}"),
        (
            "turns ended, greedy and sampled",
            lambda m: f"{percent(m['ended_greedy'])}, {percent(m['ended_sampled'])}",
        ),
    ]
    lines = [f"| | {' | '.join(models)} |", "|---|" + "---|" * len(models)]
    return lines + [
        f"| {label} | {' | '.join(show(model) for model in models.values())} |"
        for label, show in rows
    ]


def skill_lines(models: dict[str, Any]) -> list[str]:
    kinds = {"greedy": "greedy_accuracy", "sampled": "sampled_accuracy"}
    columns = [(name, kind) for name in models for kind in kinds]
    headings = " | ".join(f"{name}, {kind}" for name, kind in columns)
    lines = [f"| right by skill | {headings} |", "|---" * (len(columns) + 1) + "|"]
    for skill in SKILLS:
        cells = [percent(models[name][kinds[kind]][skill]) for name, kind in columns]
        lines.append(f"| {skill} | {' | '.join(cells)} |")
    return lines


def choice_parts(choices: dict[str, Any]) -> list[list[str]]:
    headings = (
        "the wrong one is from",
        "pairs",
        "right, one order",
        "right, both orders averaged",
        "position bias",
        "mass on A and B",
        "right by log-probability",
    )
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, found in choices.items():
        cells = [
            LABELS[name],
            str(found["pairs"]),
            percent(found["accuracy_one_order"]),
            percent(found["accuracy_both_orders"]),
            f"{found['position_bias']:+.3f}",
            percent(found["letter_mass"]),
            percent(found["accuracy_of_reward"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        paragraph(
            "The teacher was also trained to name the best of two to four candidates by its "
            "letter. This is how it chooses between one right and one wrong response:"
        ),
        lines,
        paragraph(
            "Each pair is asked in both orders. Position bias is the mean probability of A less "
            "one half."
        ),
    ]
