"""Batches of sampling and of scoring that fit the device, by a step on tensors without values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from pad_fast.footprint.classifiers import classified_batch
from pad_fast.footprint.fakes import count_parameters
from pad_fast.footprint.packed_weights import saved_bytes
from pad_fast.footprint.steps import GroupShape, Reading, sampling_batch, scoring_batch
from pad_fast.models.auto import build_classifier, build_model
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.data_types import stored_dtype

REWARD_MODEL = "reward_model"  # the role of a checkpoint
SAMPLED, SCORED = "sample_batch_tokens", "score_batch_tokens"
# The most tokens of a batch. A CPU is no faster with larger batches of scoring, whose rows differ
# more in length and are padded more; a GPU is.
MOST = {False: {SAMPLED: 65_536, SCORED: 4096}, True: {SAMPLED: 524_288, SCORED: 131_072}}
LEAST = 1024
SHARE = {False: 0.5, True: 0.8}  # the part of the memory that a batch may fill, weights included


@dataclass(frozen=True)
class BatchTokens:
    """The most tokens of a batch of sampling, and of one of scoring."""

    sample: int = MOST[False][SAMPLED]
    score: int = MOST[False][SCORED]

    @classmethod
    def of(cls, config: RunConfig) -> BatchTokens:
        """Those of the settings, and where they are left open those of a CPU with much memory."""
        usual = cls()
        return cls(
            config.sample_batch_tokens or usual.sample, config.score_batch_tokens or usual.score
        )


def tokens_that_fit(
    name: str, config: RunConfig, checkpoints: Sequence[Checkpoint], memory: int, *, gpu: bool
) -> int:
    """The most tokens of a batch with which every model fits: the usual number, halved until so.

    Prompts and responses of a sampled batch are taken to be of one length, max_new_tokens. The
    memory is all that the device has, not what is free, so that a resumed run decides alike.

    Args:
        name: "sample_batch_tokens" or "score_batch_tokens".
        config: of the run.
        checkpoints: the models that this process runs.
        memory: bytes of the device.
        gpu: whether it is a GPU.
    """
    tokens, room = MOST[gpu][name], SHARE[gpu] * memory
    reading = Reading(gpu=gpu, attention=config.attn_implementation, memory=int(room))
    for checkpoint in checkpoints:
        peak = _peak(name, config, checkpoint, reading)
        while tokens > LEAST and not _fits(peak, config, checkpoint, tokens, room):
            tokens //= 2
    return tokens


def with_fitting_scores(
    limits: BatchTokens, config: RunConfig, checkpoint: Checkpoint, memory: int, *, gpu: bool
) -> BatchTokens:
    """A run's batches, with such of scoring as fit a model that servers run otherwise.

    Args:
        limits: the run's.
        config, memory, gpu: see :func:`tokens_that_fit`.
        checkpoint: the model.
    """
    if config.score_batch_tokens:
        return limits
    fitting = tokens_that_fit(SCORED, config, [checkpoint], memory, gpu=gpu)
    return replace(limits, score=min(limits.score, fitting))


def builder(role: str) -> Callable[..., Any]:
    """What makes a model of a role of its configuration, with random weights."""
    return build_classifier if role == REWARD_MODEL else build_model


def spared_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """The bytes that a checkpoint's weights take less than all of them in ``dtype``."""
    return saved_bytes(checkpoint.path, checkpoint.config, dtype, builder(checkpoint.role))


def held_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """The bytes of a checkpoint's weights in ``dtype``, of quantised ones as they are stored."""
    count = count_parameters(checkpoint.config, builder(checkpoint.role))
    return count * dtype.itemsize - spared_bytes(checkpoint, dtype)


def _peak(
    name: str, config: RunConfig, checkpoint: Checkpoint, reading: Reading
) -> Callable[[int], int]:
    """The peak in bytes of a batch of so many tokens."""
    dtype = stored_dtype(checkpoint, config.dtype)
    counted = _sampled_peak if name == SAMPLED else _scored_peak
    counted = _classified_peak if checkpoint.role == REWARD_MODEL else counted
    weights = cache(lambda: held_bytes(checkpoint, dtype))
    saved = cache(lambda: spared_bytes(checkpoint, dtype))

    def peak(tokens: int) -> int:
        if weights() >= (reading.memory or math.inf):  # no batch fits, and a large model takes long
            return weights()
        return counted(config, checkpoint, tokens, reading) - saved()

    return peak


def _fits(
    peak: Callable[[int], int],
    config: RunConfig,
    checkpoint: Checkpoint,
    tokens: int,
    room: float,
) -> bool:
    try:
        if _at_most(checkpoint.config.get_text_config(), tokens, config.max_new_tokens) < room:
            return True
        return peak(tokens) < room
    except Exception:  # a model whose steps cannot be counted gets the usual batches
        return True


def _at_most(text: Any, tokens: int, response: int) -> int:
    """More bytes than a batch takes, in float32: a small model needs no closer look."""
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    layers = text.num_hidden_layers
    each = 4 * (layers * 4 * hidden + 64 * hidden + 8 * inner)
    rows = tokens // max(1, response) + 1
    weights = 4 * (layers * (4 * hidden + 4 * inner) * hidden + 2 * text.vocab_size * hidden)
    attention = 4 * tokens * 2048  # scores of a block of rows, where they are not fused
    return weights + tokens * each + attention + 32 * rows * text.vocab_size + 2**28


def _sampled_peak(config: RunConfig, checkpoint: Checkpoint, tokens: int, reading: Reading) -> int:
    length = config.max_new_tokens
    shape = GroupShape(length, length, max(1, tokens // (2 * length)))
    dtype = stored_dtype(checkpoint, config.dtype)
    parts = sampling_batch(checkpoint.config, shape, dtype, reading.attention)
    return max(part.peak for part in parts)


def _scored_peak(config: RunConfig, checkpoint: Checkpoint, tokens: int, reading: Reading) -> int:
    length = config.max_new_tokens
    shape = GroupShape(length, length, 1)
    prompts, dtype = max(1, tokens // (2 * length)), stored_dtype(checkpoint, config.dtype)
    return scoring_batch(checkpoint.config, prompts, shape, dtype, tokens, reading).peak


def _classified_peak(
    config: RunConfig, checkpoint: Checkpoint, tokens: int, reading: Reading
) -> int:
    length, dtype = 2 * config.max_new_tokens, stored_dtype(checkpoint, config.dtype)
    rows = max(1, tokens // length)
    return classified_batch(checkpoint.config, rows, length, dtype, reading.attention).peak
