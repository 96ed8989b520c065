"""Responses of a model to prompts, with transformers' ``generate``.

Token ids are kept exactly as they were sampled, including the token that ends a response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from pad_fast.conversation.encoding import TextEncoder
from pad_fast.models.causal_lm import causal_lm
from pad_fast.models.neighbour_effects import Sides, sides_of
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.score.model_scores import ModelScores, not_finite
from pad_fast.pipeline.whole_files import Row


@dataclass(frozen=True)
class Sampler:
    """How responses are sampled.

    Args:
        config: gives temperature, top-p, top-k and the lengths.
        num_generations: number of responses to each prompt; 0 asks for one greedy response.
        scores: if given, the model's rewards of its own responses are stored with them.
    """

    config: RunConfig
    num_generations: int
    scores: ModelScores | None = None

    @property
    def per_prompt(self) -> int:
        """The number of responses to each prompt."""
        return max(1, self.num_generations)

    def generation_config(self, eos_token_ids: list[int], pad_token_id: int) -> GenerationConfig:
        """The settings of ``generate``, all of them."""
        config = self.config
        sampling: dict[str, Any] = {"do_sample": False}
        if self.num_generations:
            sampling = {
                "do_sample": True,
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
                "num_return_sequences": self.num_generations,
            }
        return GenerationConfig(
            max_new_tokens=config.max_new_tokens,
            eos_token_id=eos_token_ids,
            pad_token_id=pad_token_id,
            **sampling,
        )


def generate(
    checkpoint: Checkpoint, rows: Sequence[Row], sampler: Sampler, progress: Callable[[int], object]
) -> list[Row]:
    """The rows with the responses to their ``prompt_ids``.

    The new columns are ``completions``, ``completion_ids`` and ``finish_reasons``, and with
    ``sampler.scores`` also ``student_rewards``.

    Args:
        checkpoint: the model that responds.
        rows: prompts.
        sampler: how it samples.
        progress: called with the number of new responses, batch by batch.
    """
    model, tokenizer, encoder = checkpoint.model, checkpoint.tokenizer, checkpoint.chat.encoder
    eos = checkpoint.eos_token_ids
    # A checkpoint's own generation config would fill in what ours leaves open, such as a repetition
    # penalty.
    model.generation_config = sampler.generation_config(
        eos, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    )
    sampled: list[Row] = [{} for _ in rows]
    lengths = [len(row["prompt_ids"]) for row in rows]
    for batch in _batches(lengths, sampler, sides_of(causal_lm(model))):
        prompts = [rows[index]["prompt_ids"] for index in batch]
        groups = _generated_ids(model, prompts, sampler.per_prompt)
        for index, group in zip(batch, groups, strict=True):
            sampled[index] = {**rows[index], **_responses(group, eos, encoder)}
        progress(len(batch) * sampler.per_prompt)
    if sampler.scores is not None:
        rewards = sampler.scores.rewards(
            model,
            [row["prompt_ids"] for row in sampled],
            [row["completion_ids"] for row in sampled],
        )
        for row, found in zip(sampled, rewards, strict=True):
            row["student_rewards"] = found
    return sampled


def _batches(lengths: Sequence[int], sampler: Sampler, sides: Sides) -> Iterator[list[int]]:
    """Indices of prompts of similar length, the longest first, in batches.

    A batch has at most ``sample_batch_tokens`` tokens with all its responses, or one prompt. All
    its prompts and responses are on one side of what the model tells apart; prompts whose responses
    may cross over have one length, so that they do it in the same step.
    """
    longest = sampler.config.max_new_tokens

    def side(length: int) -> Any:
        stays = sides(length) == sides(length + longest)
        return sides(length) if stays else length

    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch:
            tokens = (lengths[batch[0]] + longest) * sampler.per_prompt
            full = len(batch) >= sampler.config.sample_batch_tokens // tokens
            if full or side(lengths[batch[0]]) != side(lengths[index]):
                yield batch
                batch = []
        batch.append(index)
    if batch:
        yield batch


class _FiniteLogits(LogitsProcessor):
    """Raises ValueError where a model predicts NaN or infinity.

    Sampling would fail without naming the model, and a greedy response would be made up. Logits of
    -inf are a model's way to exclude a token.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not (scores < math.inf).all():
            raise not_finite(self.model, "logits")
        return scores


@torch.inference_mode()
def _generated_ids(
    model: Any, prompts: Sequence[Sequence[int]], per_prompt: int
) -> list[list[list[int]]]:
    """The tokens after each prompt, with the padding that ``generate`` adds after the end."""
    width = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    output = model.generate(**inputs, logits_processor=LogitsProcessorList([_FiniteLogits(model)]))
    return output[:, width:].view(len(prompts), per_prompt, -1).tolist()


def _responses(
    group: Sequence[Sequence[int]], eos_token_ids: Sequence[int], encoder: TextEncoder
) -> Row:
    """The columns of one prompt's responses, each up to and including its first end token.

    The finish reason is ``stop`` for a response that ended and ``length`` for one that was cut.
    The text is without the end token and otherwise all that was sampled, control tokens included.
    """
    completion_ids, finish_reasons, texts = [], [], []
    for tokens in group:
        end = next((place for place, token in enumerate(tokens) if token in eos_token_ids), None)
        completion_ids.append(list(tokens) if end is None else list(tokens[: end + 1]))
        finish_reasons.append("length" if end is None else "stop")
        texts.append(encoder.text(tokens[:end]))
    return {
        "completions": texts,
        "completion_ids": completion_ids,
        "finish_reasons": finish_reasons,
    }
