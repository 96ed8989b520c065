"""Scores under a model with the settings of a run, for student and teacher alike."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pad_fast.dispatch import resolve_impl
from pad_fast.models.causal_lm import causal_lm, input_embedding
from pad_fast.models.scoring import next_token_logprobs, score_responses
from pad_fast.pipeline.batch_sizes import BatchTokens
from pad_fast.pipeline.config import RunConfig

logger = logging.getLogger("pad_fast")

# What mends numbers that are not finite, by the weights' data type.
REMEDIES = {
    torch.float16: "float16 holds nothing above 65,504: set dtype: bfloat16 or float32",
    torch.bfloat16: "set dtype: float32; if that does not help, check its weights",
    torch.float32: "check its weights, which a training that diverged leaves like that, or set "
    "attn_implementation: eager",
}

Ids = Sequence[int]
Progress = Callable[[int], object]


class ModelScores:
    """Scores of responses as a run is configured.

    Args:
        config: gives the temperature, the tokens in a batch and whether prompts are shared.
        normalize: the rewards' normalization, "mean" or "sum".
        impl: "auto", "torch" or "triton", from PADConfig.
        record: called once with each implementation, "torch" or "triton", before its first use.

    Attributes:
        limits: the tokens of batches; an open run sets them to what fits the device.
    """

    def __init__(
        self,
        config: RunConfig,
        normalize: str,
        impl: str = "auto",
        record: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.normalize, self.impl, self.record = config, normalize, impl, record
        self.limits = BatchTokens.of(config)
        self._used: set[str] = set()

    def rewards(
        self,
        model: Any,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Rewards in nats per token (in nats if ``normalize`` is "sum"), as score_responses."""
        return self._scored(model, prompts, responses, self.normalize, progress)

    def logps(
        self,
        model: Any,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Log-probabilities of responses, in nats."""
        return self._scored(model, prompts, responses, "sum", progress)

    def next_tokens(
        self,
        model: Any,
        prompts: Sequence[Ids],
        token_ids: Sequence[int],
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Log-probability, in nats, of each of ``token_ids`` as the next token of each prompt."""
        found = next_token_logprobs(
            model,
            prompts,
            token_ids,
            max_tokens_per_batch=self.limits.score,
            progress=progress,
            impl=self._implementation(model),
        )
        check_finite(model, "question", "token", found)
        return found

    def _scored(
        self,
        model: Any,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        normalize: str,
        progress: Progress | None,
    ) -> list[list[float]]:
        found = score_responses(
            model,
            prompts,
            responses,
            normalize=normalize,
            temperature=self.config.reward_temperature,
            share_prefix=self.config.share_prefix,
            max_tokens_per_batch=self.limits.score,
            progress=progress,
            impl=self._implementation(model),
        )
        check_finite(model, "prompt", "response", found)
        return found

    def _implementation(self, model: Any) -> str:
        """The implementation that scores under ``model``, logged and recorded at its first use."""
        found = resolve_impl(self.impl, input_embedding(causal_lm(model)))
        if found not in self._used:
            self._used.add(found)
            logger.info("responses are scored by the %s implementation", found)
            if self.record is not None:
                self.record(found)
        return found


def check_finite(model: Any, row: str, column: str, found: Sequence[Sequence[float]]) -> None:
    """Raise the error of :func:`not_finite` unless all log-probabilities are finite.

    Args:
        model: the transformers model that they are from.
        row, column: what a list and a number in it are about, in a word each.
        found: the log-probabilities.
    """
    wrong = [
        (p, i, value)
        for p, group in enumerate(found)
        for i, value in enumerate(group)
        if not math.isfinite(value)
    ]
    if wrong:
        (p, i, value), total = wrong[0], sum(map(len, found))
        where = f"log-probabilities ({value} for {row} {p}, {column} {i}; {len(wrong)} of {total})"
        raise not_finite(model, where)


def not_finite(model: Any, what: str) -> ValueError:
    """The error about numbers of a model that are not finite: it names what may help."""
    lm = causal_lm(model)
    remedy = REMEDIES.get(lm.dtype, REMEDIES[torch.float32])
    return ValueError(
        f"the model {lm.config.name_or_path} in {str(lm.dtype).removeprefix('torch.')} gives "
        f"{what} that are not finite, and nothing of them is kept; {remedy}"
    )
