"""The model card of the tiny world, every figure in it from `facts.json`."""

from __future__ import annotations

from typing import Any

from tiny_world.measure import SAMPLES
from tiny_world.tasks import SKILLS, draw_distinct

LABELS = {
    "student_samples": "the student's own samples at temperature 1",
    "slips": "the generator's mistakes",
}


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def model_card(facts: dict[str, Any], sizes: dict[str, int]) -> str:
    """Markdown."""
    models = {name: facts[name] for name in ("teacher", "student")}
    return "\n".join(
        [
            "# The tiny world",
            "",
            "A teacher, a student and prompts for a whole distillation run on two CPU cores. Both models are ordinary `transformers`",
            "Llamas in float32, trained from random weights by `tools/make_tiny_world.py`, which also measured and wrote this page.",
            "",
            *example_lines(),
            "",
            *model_lines(models),
            "",
            *skill_lines(models),
            "",
            *choice_lines(facts["choices"]),
            "",
            *notes(facts["surroundings"], sizes),
            "",
        ]
    )


def notes(surroundings: dict[str, str], sizes: dict[str, int]) -> list[str]:
    counts = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
    error = percent(0.5 / sizes["heldout"] ** 0.5)
    return [
        f"Prompts: {counts}. A prompt's split is a hash of its text, so that none is in two, and neither",
        "model was trained on a validation or held-out prompt. All figures are on the held-out ones: the standard error of a share is",
        f"{error} or less, and {percent(0.5 / (sizes['heldout'] / len(SKILLS)) ** 0.5)} or less for a single skill.",
        f"Made on {surroundings['machine']}, with torch {surroundings['torch']} and transformers {surroundings['transformers']}.",
    ]


def example_lines() -> list[str]:
    chosen = {task.skill: task for task in draw_distinct(0, "heldout", 60)}
    lines = ["| skill | a prompt | the right response | a slip |", "|---|---|---|---|"]
    return lines + [
        f"| {skill} | {chosen[skill].prompt} | `{chosen[skill].response}` | `{chosen[skill].slips[0]}` |"
        for skill in SKILLS
    ]


def model_lines(models: dict[str, Any]) -> list[str]:
    rows = [
        ("parameters", lambda m: f"{m['parameters']:,}"),
        ("training", lambda m: f"{m['steps']:,} steps, {m['train_seconds']:,} s"),
        ("seed", lambda m: str(m["seed"])),
        ("right, greedy", lambda m: percent(m["greedy_accuracy"]["all"])),
        ("right, sampled at temperature 1", lambda m: percent(m["sampled_accuracy"]["all"])),
        (f"distinct of {SAMPLES} samples", lambda m: f"{m['distinct']:.2f}"),
        ("tokens a sample, the end of turn with them", lambda m: f"{m['mean_tokens']:.1f}"),
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
    kinds = ("greedy_accuracy", "sampled_accuracy")
    lines = [
        "| right by skill | teacher, greedy | teacher, sampled | student, greedy | student, sampled |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {skill} | {' | '.join(percent(model[kind][skill]) for model in models.values() for kind in kinds)} |"
        for skill in SKILLS
    ]


def choice_lines(choices: dict[str, Any]) -> list[str]:
    lines = [
        "The teacher was also trained to name the best of two to four candidates by its letter. One right response against a wrong one:",
        "",
        "| the wrong one is from | pairs | right, one order | right, both orders averaged | position bias | mass on A and B"
        " | right by log-probability |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in choices.items():
        shares = [percent(found[key]) for key in ("accuracy_one_order", "accuracy_both_orders")]
        rest = [
            f"{found['position_bias']:+.3f}",
            percent(found["letter_mass"]),
            percent(found["accuracy_of_reward"]),
        ]
        lines.append(f"| {LABELS[name]} | {found['pairs']} | {' | '.join(shares + rest)} |")
    return [
        *lines,
        "",
        "Position bias is the mean probability of A less one half, each pair asked in both orders.",
    ]
