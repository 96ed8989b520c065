"""Where prompts, responses and scores come from: which settings go together."""

from __future__ import annotations

from typing import Any


def check_origins(config: Any) -> None:
    """Raise ValueError unless prompts, responses and scores each have one origin.

    Args:
        config: a RunConfig.
    """
    if config.responses and config.prompts:
        raise ValueError(
            "prompts: must be left out with responses, whose rows hold the prompts, got "
            f"{config.prompts!r}"
        )
    if not config.responses and not config.prompts:
        raise ValueError("prompts: needed, and neither they nor responses are given")
    if config.teacher and config.reward_model:
        raise ValueError(
            "reward_model: scores in place of a teacher, got both; leave out one of them"
        )
    for name in ("teacher_server", "teacher_serve"):
        if getattr(config, name) and not config.teacher:
            raise ValueError(f"{name}: needs a teacher, and none is given")
    if config.responses and config.teacher_response != "none":
        raise ValueError(
            "teacher_response: must be none with responses, to which nothing is added, got "
            f"{config.teacher_response!r}"
        )
    if config.baseline == "seqkd" and not config.teacher:
        raise ValueError(
            "baseline: seqkd needs a teacher, whose answers it trains on, got none; set it to none"
        )
    if config.teacher or config.reward_model:
        return
    if not config.responses:
        raise ValueError("teacher: needed, and neither it nor a reward_model is given")
    if config.responses_scores == "ignore":
        raise ValueError(
            "responses_scores: ignore needs a teacher or a reward_model that scores instead, got "
            "neither"
        )
    if config.rounds > 1:
        raise ValueError(
            "rounds: must be 1 without a teacher and without a reward_model, since later rounds "
            f"sample responses that nothing scores, got {config.rounds}"
        )
