"""Rows of prompts with the responses of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pad_fast.conversation.encoding import TextEncoder
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.sample.engines import Engine, Sample, Sampling, unseen


@dataclass(frozen=True)
class Sampler:
    """How many responses are sampled, and how.

    Args:
        config: gives temperature, top-p, top-k and the lengths.
        num_generations: number of responses to each prompt; 0 asks for one greedy response.
        rewards: whether the model's rewards of its own responses are stored with them.
        complete: makes the rows that are kept from those that were sampled, where they differ.
    """

    config: RunConfig
    num_generations: int
    rewards: bool = False
    complete: Callable[[list[Row]], list[Row]] | None = None

    @property
    def per_prompt(self) -> int:
        """The number of responses to each prompt."""
        return max(1, self.num_generations)

    @property
    def how(self) -> Sampling:
        """The settings of the engine."""
        config = self.config
        if not self.num_generations:
            return Sampling(config.max_new_tokens, temperature=0.0)
        return Sampling(config.max_new_tokens, config.temperature, config.top_p, config.top_k)


def generate(
    engine: Engine,
    rows: Sequence[Row],
    sampler: Sampler,
    seed: int,
    progress: Callable[[int], object],
    tokens: Callable[[int], object] = unseen,
) -> list[Row]:
    """The rows with the responses to their ``prompt_ids``.

    The new columns are ``completions``, ``completion_ids``, ``finish_reasons`` and
    ``sampled_by``, and with ``sampler.rewards`` also ``student_rewards``.

    Args:
        engine: the model that responds.
        rows: prompts.
        sampler: how it samples.
        seed: of these responses.
        progress: called with the number of new responses, as they end.
        tokens: called with the number of new tokens.
    """
    prompts = [row["prompt_ids"] for row in rows]
    groups = engine.sample(prompts, sampler.per_prompt, sampler.how, seed, progress, tokens)
    encoder = engine.checkpoint.chat.encoder
    ends = engine.checkpoint.eos_token_ids
    sampled = [
        {**row, **columns(group, ends, encoder), "sampled_by": engine.identity}
        for row, group in zip(rows, groups, strict=True)
    ]
    if sampler.rewards:
        for row, rewards in zip(sampled, _own_rewards(engine, prompts, groups), strict=True):
            row["student_rewards"] = rewards
    return sampled


def columns(group: Sequence[Sample], eos_token_ids: Sequence[int], encoder: TextEncoder) -> Row:
    """The columns of one prompt's responses.

    The text is without the end token and otherwise all that was sampled, control tokens included.
    """
    texts = []
    for sample in group:
        ended = bool(sample.ids) and sample.ids[-1] in eos_token_ids
        texts.append(encoder.text(sample.ids[: len(sample.ids) - ended]))
    return {
        "completions": texts,
        "completion_ids": [sample.ids for sample in group],
        "finish_reasons": [sample.finish_reason for sample in group],
    }


def _own_rewards(
    engine: Engine, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Sample]]
) -> list[list[float]]:
    """The engine's rewards of its own samples, read again if sampling did not give them."""
    if any(sample.logp is None for group in groups for sample in group):
        return engine.rewards(prompts, [[sample.ids for sample in group] for group in groups])
    return [
        [engine.reward(sample.logp or 0.0, len(sample.ids)) for sample in group] for group in groups
    ]
