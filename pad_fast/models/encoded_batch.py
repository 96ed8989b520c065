"""Prompts and responses as one batch for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchEncoding

from pad_fast.models.layout import IGNORE, PAD_ID
from pad_fast.models.token_ids import TokenIdReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_responses(
    prompts: Sequence[Any],
    responses: Sequence[Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    finish_reasons: Sequence[Sequence[str]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> BatchEncoding:
    """A batch of P * N sequences, prompt by prompt, for a model and a loss with ``shift=True``.

    Args:
        prompts, responses, tokenizer, finish_reasons, chat_template_kwargs: as in
            :func:`pad_fast.score_responses`, with N responses to each prompt.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64 (P * N, T), padded on the right.
        Labels are Hugging Face's: each at its own token, and -100 on prompts and padding.

    Raises:
        ValueError: what was given is in another form, a prompt is empty, or the numbers of
            responses differ.

    Example:
        >>> batch = encode_responses([[1, 2], [3]], [[[4, 5]], [[6]]])
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[1, 2, 4, 5], [3, 6, 0, 0]], [[-100, -100, 4, 5], [-100, 6, -100, -100]])
    """
    reader = TokenIdReader(tokenizer, chat_template_kwargs)
    asked, groups = reader.read(prompts, responses, finish_reasons)
    counts = {len(group) for group in groups}
    if len(counts) > 1:
        raise ValueError(
            "responses must hold the same number for each prompt, got "
            f"{', '.join(map(str, sorted(counts)))}; PADTrainer takes groups of different sizes"
        )
    pairs = [(list(x), list(y)) for x, ys in zip(asked, groups, strict=True) for y in ys]
    if empty := [p for p, prompt in enumerate(asked) if len(prompt) == 0]:
        raise ValueError(f"prompts must not be empty, got prompt {empty[0]} with no token")
    width = max((len(x) + len(y) for x, y in pairs), default=0)
    found = {
        "input_ids": [_padded(x + y, width, PAD_ID) for x, y in pairs],
        "attention_mask": [_padded([1] * len(x + y), width, 0) for x, y in pairs],
        "labels": [_padded([IGNORE] * len(x) + y, width, IGNORE) for x, y in pairs],
    }
    return BatchEncoding(
        {
            name: torch.tensor(rows, dtype=torch.int64).view(len(pairs), width)
            for name, rows in found.items()
        }
    )


def _padded(ids: list[int], width: int, value: int) -> list[int]:
    return ids + [value] * (width - len(ids))
