"""The range of every number among a run's own settings.

What a rule is stands in :mod:`pad_fast.training.number_rules`.
"""

from __future__ import annotations

from pad_fast.training.number_rules import (
    MOST,
    SEEDS,
    TEMPERATURES,
    TOKENS,
    NumberRule,
    real,
    whole,
)

# As many as a ranking of all responses can have; the questions about them are listed.
RESPONSES = whole(2, 65_536, "a ranking needs two")

BENCHMARK_RULES: dict[str, NumberRule] = {
    "benchmark_limit": whole(1, MOST, "questions"),
    "benchmark_max_new_tokens": TOKENS,
    "benchmark_temperature": real(0, TEMPERATURES.most, "0 is greedy"),
    "benchmark_shots": whole(0, 1024, "solved problems"),
}
RULES: dict[str, NumberRule] = {
    **BENCHMARK_RULES,
    "heldout_size": whole(0, MOST, "prompts"),
    "validation_size": whole(0, MOST, "prompts"),
    "patience": whole(0, 10_000, "rounds; 0 does all"),
    "rounds": whole(1, 10_000),
    "prompts_per_round": whole(1, 100_000_000, "prompts"),
    "prompts_per_step": whole(1, 100_000_000, "prompts"),
    "shard_size": whole(1, MOST, "prompts"),
    "seed": SEEDS,
    "num_generations": RESPONSES,
    "heldout_num_generations": RESPONSES,
    "temperature": real(
        TEMPERATURES.least,
        TEMPERATURES.most,
        "greedy responses, as at 0, would all be the same",
    ),
    "reward_temperature": TEMPERATURES,
    "top_p": real(0, 1, "1 turns it off", above=True),
    "top_k": whole(0, TOKENS.most, "0 turns it off"),
    "max_new_tokens": TOKENS,
    "max_prompt_length": TOKENS,
    "sample_batch_tokens": TOKENS,
    "score_batch_tokens": TOKENS,
    "server_concurrency": whole(1, 65_536, "requests"),
    "server_timeout": real(0, 86_400, "seconds", above=True),
    "server_patience": real(0, 604_800, "seconds"),
    "serve_timeout": real(0, 86_400, "seconds", above=True),
    "mcq_opponents": whole(2, 65_536, "an even one"),
    "mcq_weight": real(0, 1),
    "lora_r": whole(1, 65_536),
    "lora_alpha": whole(1, 65_536),
    "lora_dropout": real(0, 1, below=True),
    "mcq_floor": real(0, 1, above=True, below=True),
}
