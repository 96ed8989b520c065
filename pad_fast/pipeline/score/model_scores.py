"""Scores under a model with the settings of a run, for student and teacher alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from pad_fast.dispatch import resolve_impl
from pad_fast.models.causal_lm import causal_lm, input_embedding
from pad_fast.models.scoring import next_token_logprobs, score_responses
from pad_fast.pipeline.config import RunConfig

logger = logging.getLogger("pad_fast")

Ids = Sequence[int]
Progress = Callable[[int], object]


class ModelScores:
    """Scores of responses as a run is configured.

    Args:
        config: gives the temperature, the tokens in a batch and whether prompts are shared.
        normalize: the rewards' normalization, "mean" or "sum".
        impl: "auto", "torch" or "triton", from PADConfig.
        record: called once with each implementation, "torch" or "triton", before its first use.
    """

    def __init__(
        self,
        config: RunConfig,
        normalize: str,
        impl: str = "auto",
        record: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.normalize, self.impl, self.record = config, normalize, impl, record
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
        return next_token_logprobs(
            model,
            prompts,
            token_ids,
            max_tokens_per_batch=self.config.score_batch_tokens,
            progress=progress,
            impl=self._implementation(model),
        )

    def _scored(
        self,
        model: Any,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        normalize: str,
        progress: Progress | None,
    ) -> list[list[float]]:
        return score_responses(
            model,
            prompts,
            responses,
            normalize=normalize,
            temperature=self.config.reward_temperature,
            share_prefix=self.config.share_prefix,
            max_tokens_per_batch=self.config.score_batch_tokens,
            progress=progress,
            impl=self._implementation(model),
        )

    def _implementation(self, model: Any) -> str:
        """The implementation that scores under ``model``, logged and recorded at its first use."""
        found = resolve_impl(self.impl, input_embedding(causal_lm(model)))
        if found not in self._used:
            self._used.add(found)
            logger.info("responses are scored by the %s implementation", found)
            if self.record is not None:
                self.record(found)
        return found
