"""Rewards: how responses are scored."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.pipeline.option import option


@dataclass
class RewardOptions:
    """Rewards: how responses are scored."""

    reward_temperature: float = option(
        1.0, "Temperature of the log-probabilities in the rewards of student and teacher."
    )
    share_prefix: str = option(
        "auto",
        "Read each prompt once for all of its responses, in scoring and in training: auto (where "
        "a trial shows that the model allows it), true or false.",
    )
    score_batch_tokens: int | None = option(
        None,
        "Most tokens in a batch of scoring. Default: what fits the device; at most 4,096 on a CPU "
        "and 131,072 on a GPU.",
    )
