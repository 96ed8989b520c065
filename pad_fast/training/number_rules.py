"""The range of every number among the settings: what a rule is, and the rules of PADConfig.

Those of a run's own settings are in :mod:`pad_fast.pipeline.number_rules`. A number that no
training could use is refused by name when the settings are read, and not after hours of sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pad_fast.preference.options import MIN_SAMPLES


@dataclass(frozen=True)
class NumberRule:
    """The values that a setting may have.

    Args:
        least, most: the smallest and the largest value.
        whole: whether it is a whole number.
        above, below: leave out ``least`` and ``most`` themselves.
        others: values outside of the range that mean something, such as -1 for "not set".
        note: why, or what a value means; it follows the range in messages.

    Example:
        >>> NumberRule(0, 1, whole=False, above=True).words()
        'a number above 0 and at most 1'
        >>> whole(2, 9, "a ranking needs two").problem(1)
        'must be a whole number from 2 to 9 (a ranking needs two), got 1'
    """

    least: float
    most: float
    whole: bool = True
    above: bool = False
    below: bool = False
    others: tuple[float, ...] = ()
    note: str = ""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, to follow the setting's name; None if nothing is."""
        return None if self._allows(value) else f"must be {self.words()}, got {value!r}"

    def _allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if value in self.others:
            return True
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and (not self.whole or value == math.floor(value))

    def words(self) -> str:
        """The rule as the end of "must be ..."."""
        low = f"above {self.least:,}" if self.above else f"from {self.least:,}"
        high = f"below {self.most:,}" if self.below else f"at most {self.most:,}"
        plain = not self.above and not self.below
        span = f"from {self.least:,} to {self.most:,}" if plain else f"{low} and {high}"
        others = "".join(f", or {other:,}" for other in self.others)
        return (
            f"a {'whole ' if self.whole else ''}number {span}{others}"
            f"{f' ({self.note})' if self.note else ''}"
        )


def whole(least: float, most: float, note: str = "", **options: Any) -> NumberRule:
    """A rule for whole numbers."""
    return NumberRule(least, most, note=note, **options)


def real(least: float, most: float, note: str = "", **options: Any) -> NumberRule:
    """A rule for numbers that need not be whole."""
    return NumberRule(least, most, whole=False, note=note, **options)


def problems(rules: Mapping[str, NumberRule], options: Any) -> Iterator[tuple[str, str]]:
    """The names of the settings that break their rule, each with what is wrong.

    A setting that is None is not set.
    """
    for name, rule in rules.items():
        value = getattr(options, name, None)  # a release of transformers may lack an argument
        if value is not None and (problem := rule.problem(value)) is not None:
            yield name, problem


MOST = 1_000_000_000  # more than any count here can be: steps, tokens, seconds
SEEDS = whole(0, 2**32 - 1, "what NumPy takes as a seed")
TOKENS = whole(1, 2**31 - 1, "tokens")
STEPS = real(0, MOST, "steps; below 1, a share of all steps", above=True)
TEMPERATURES = real(1e-4, 1e4, "it divides logits, which float32 has to hold")

RULES: dict[str, NumberRule] = {
    "per_device_train_batch_size": whole(1, 1_000_000, "prompts"),
    "per_device_eval_batch_size": whole(1, 1_000_000, "prompts"),
    "gradient_accumulation_steps": whole(1, 1_000_000),
    "num_train_epochs": real(0, 1_000_000, above=True),
    "max_steps": whole(1, MOST, "-1 counts by num_train_epochs", others=(-1,)),
    "learning_rate": real(0, 1_000),
    "warmup_steps": real(0, MOST, "steps; below 1, a share of all steps"),
    "weight_decay": real(0, 1_000),
    "adam_beta1": real(0, 1, below=True),
    "adam_beta2": real(0, 1, below=True),
    "adam_epsilon": real(0, 1),
    "max_grad_norm": real(0, math.inf, "0 and inf clip nothing"),
    "torch_empty_cache_steps": whole(1, MOST),
    "logging_steps": STEPS,
    "save_steps": STEPS,
    "eval_steps": STEPS,
    "eval_delay": real(0, MOST, "epochs or steps"),
    "save_total_limit": whole(0, MOST, "0 keeps all checkpoints"),
    "seed": SEEDS,
    "data_seed": SEEDS,
    "dataloader_num_workers": whole(0, 4096, "processes"),
    "dataloader_prefetch_factor": whole(1, 1_000_000, "batches"),
    "ddp_bucket_cap_mb": whole(1, 1_000_000, "MB"),
    "ddp_timeout": whole(1, MOST, "seconds"),
    "local_rank": whole(0, 1_000_000, "-1 without a launcher", others=(-1,)),
    "beta": real(0, 1_000_000, above=True),
    "teacher_beta": real(0, 1_000_000, above=True),
    "likelihood_beta": real(0, 1_000_000, above=True),
    "gamma": real(0, 1_000_000, "nats"),
    "preference_weight": real(0, 1_000_000),
    "likelihood_weight": real(0, 1_000_000),
    "temperature": TEMPERATURES,
    "num_samples": whole(MIN_SAMPLES, 1_000_000, "rankings"),
    "group_size": whole(2, 65_536, "a ranking needs two"),
    "max_length": whole(2, TOKENS.most, "tokens"),
    "max_prompt_length": TOKENS,
    "max_completion_length": TOKENS,
    "max_tokens_per_step": TOKENS,
    "dataset_num_proc": whole(1, 4096, "processes"),
}
