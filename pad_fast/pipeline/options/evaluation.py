"""Evaluation on the held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.evaluation.answers import RULES
from pad_fast.pipeline.option import option


@dataclass
class EvaluationOptions:
    """Evaluation on the held-out prompts."""

    heldout_num_generations: int | None = option(
        None, "Responses to each held-out prompt. Default: num_generations."
    )
    answer_rule: str = option(
        "exact",
        "When a response to a held-out prompt with an answer is right: "
        + ", ".join(f"{rule.help} ({name})" for name, rule in RULES.items())
        + ".",
        RULES,
    )
