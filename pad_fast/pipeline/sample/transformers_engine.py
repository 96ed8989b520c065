"""The engine within this process: transformers' ``generate``, and this package's scoring.

Token ids are kept exactly as they were sampled, including the token that ends a response.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from pad_fast.models.causal_lm import causal_lm
from pad_fast.models.neighbour_effects import Sides, sides_of
from pad_fast.models.similar_lengths import longest_first
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.data_types import dtype_name
from pad_fast.pipeline.sample.engines import Engine, Ids, Progress, Sample, Sampling, unseen
from pad_fast.pipeline.score.model_scores import ModelScores, not_finite

LOOK = 0.5  # seconds between two reports of a batch that is sampled


class TransformersEngine(Engine):
    """A checkpoint whose weights are loaded when they are first needed.

    Args:
        checkpoint: the model.
        scores: computes log-probabilities as the run is configured. Its ``limits`` also
            give the most tokens of a batch of sampling.
    """

    def __init__(self, checkpoint: Checkpoint, scores: ModelScores) -> None:
        super().__init__(checkpoint, scores.normalize)
        self.scores = scores

    @property
    def identity(self) -> str:
        """The version of transformers, the weights' data type, and the attention if it was set."""
        dtype = dtype_name(self.checkpoint.loaded_dtype)
        attention = self.checkpoint.attn_implementation
        return " ".join(filter(None, ("transformers", transformers.__version__, dtype, attention)))

    def sample(
        self,
        prompts: Sequence[Ids],
        n: int,
        how: Sampling,
        seed: int,
        progress: Progress = unseen,
        tokens: Progress = unseen,
    ) -> list[list[Sample]]:
        """See :meth:`Engine.sample`. Prompts of similar length are sampled in a batch.

        Raises:
            ValueError: the model predicts numbers that are not finite.
        """
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        eos = self.checkpoint.eos_token_ids
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
        # A checkpoint's own generation config would fill in what ours leaves open, such as a
        # repetition penalty.
        model.generation_config = generation_config(how, n, eos, pad)
        model.generation_config.suppress_tokens = self.checkpoint.ids_without_token() or None
        torch.manual_seed(seed)
        found: list[list[Sample]] = [[] for _ in prompts]
        lengths, budget = [len(prompt) for prompt in prompts], self.scores.limits
        most = budget.sample
        for batch in batches(lengths, n, how.max_new_tokens, most, sides_of(causal_lm(model))):
            watch = _Watch(lengths[batch[0]], eos, progress, tokens)
            groups = generated_ids(model, [prompts[index] for index in batch], n, watch)
            for index, group in zip(batch, groups, strict=True):
                found[index] = [until_end(ids, eos) for ids in group]
            made = [len(one.ids) for index in batch for one in found[index]]
            watch.report(len(made), sum(made))
        return found

    def logps(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress = unseen,
    ) -> list[list[float]]:
        """See :meth:`Engine.logps`."""
        return self.scores.logps(self.checkpoint.model, prompts, responses, progress)

    def rewards(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress = unseen,
    ) -> list[list[float]]:
        """See :meth:`Engine.rewards`; the mean is taken on the device."""
        return self.scores.rewards(self.checkpoint.model, prompts, responses, progress)

    def choices(
        self, prompts: Sequence[Ids], token_ids: Ids, progress: Progress = unseen
    ) -> list[list[float]]:
        """See :meth:`Engine.choices`."""
        return self.scores.next_tokens(self.checkpoint.model, prompts, token_ids, progress)

    def close(self) -> None:
        """Release the weights' memory for the next model."""
        self.checkpoint.free()


def generation_config(
    how: Sampling, n: int, eos_token_ids: list[int], pad_token_id: int
) -> GenerationConfig:
    """The settings of ``generate``, all of them."""
    sampling: dict[str, Any] = {"do_sample": False}
    if not how.greedy:
        sampling = {
            "do_sample": True,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "num_return_sequences": n,
        }
    return GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        eos_token_id=eos_token_ids,
        pad_token_id=pad_token_id,
        **sampling,
    )


def batches(
    lengths: Sequence[int], n: int, longest: int, most: int, sides: Sides
) -> Iterator[list[int]]:
    """Indices of prompts of similar length, the longest first, in batches.

    All prompts and responses of a batch are on one side of what the model tells apart; prompts
    whose responses may cross over have one length, so that they do it in the same step.

    Args:
        lengths: of the prompts, in tokens.
        n: number of responses to each prompt.
        longest: the most tokens of a response.
        most: the most tokens of a batch with all its responses; one prompt may have more.
        sides: what the model tells apart.
    """

    def side(length: int) -> Any:
        stays = sides(length) == sides(length + longest)
        return sides(length) if stays else length

    return longest_first(lengths, lambda prompt: most // ((prompt + longest) * n), side)


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


class _Watch(StoppingCriteria):
    """Stops nothing: reports responses that have ended, and tokens, while a batch is sampled.

    Args:
        width: number of tokens before the responses, padding included.
        ends: the tokens that end a response.
        progress: called with the number of responses that have ended since the last time.
        tokens: called with the number of tokens since then.
    """

    def __init__(self, width: int, ends: Ids, progress: Progress, tokens: Progress) -> None:
        self.width, self.ends = width, torch.tensor(list(ends))
        self.progress, self.tokens = progress, tokens
        self._reported, self._next = (0, 0), time.monotonic() + LOOK

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        if time.monotonic() >= self._next:  # each look waits for the device
            ended = torch.isin(input_ids[:, self.width :], self.ends.to(input_ids.device))
            after = (ended.cumsum(1) - ended.long()).clamp(max=1)  # 1 behind the first end
            self.report(int(ended.any(1).sum()), int((1 - after).sum()))
            self._next = time.monotonic() + LOOK
        return input_ids.new_zeros(len(input_ids), dtype=torch.bool)

    def report(self, responses: int, tokens: int) -> None:
        """Report what is new, given what the batch has now."""
        before, self._reported = self._reported, (responses, tokens)
        self.progress(responses - before[0])
        self.tokens(tokens - before[1])


@torch.inference_mode()
def generated_ids(
    model: Any, prompts: Sequence[Ids], n: int, watch: StoppingCriteria | None = None
) -> list[list[list[int]]]:
    """The tokens after each prompt, with the padding that ``generate`` adds after the end."""
    width = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    output = model.generate(
        **inputs,
        logits_processor=LogitsProcessorList([_FiniteLogits(model)]),
        stopping_criteria=StoppingCriteriaList([] if watch is None else [watch]),
        synced_gpus=False,  # each process samples its own shard, from a whole model
    )
    return output[:, width:].view(len(prompts), n, -1).tolist()


def until_end(tokens: Ids, eos_token_ids: Ids) -> Sample:
    """The response up to and including its first end token."""
    end = next((place for place, token in enumerate(tokens) if token in eos_token_ids), None)
    if end is None:
        return Sample(list(tokens), "length")
    return Sample(list(tokens[: end + 1]), "stop")
