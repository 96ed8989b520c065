"""Texts as one padded batch, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_fast.models.scored_groups import GroupReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100


def padded_responses(
    prompts: Sequence[Any],
    responses: Sequence[Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    finish_reasons: Sequence[Sequence[str]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # (R, T) int64, (R, T) int64
    """Token ids and labels of all responses, each behind its prompt, padded at the right.

    Args:
        prompts, responses, tokenizer, finish_reasons, chat_template_kwargs: as in
            :func:`pad_fast.score_responses`.

    Returns:
        ``input_ids`` and ``labels``, both (R, T), with R = P * N rows prompt by prompt. Labels are
        Hugging Face's, each at its own token and -100 elsewhere, for ``LinearPADLoss(shift=True)``.
        A prompt with fewer than N responses gets rows without labels, which no loss counts.

    Raises:
        ValueError: there are no responses; as in :func:`pad_fast.score_responses`.

    Example:
        >>> padded_responses([[1, 2], [3]], [[[4], [5, 6]], [[7]]])[1]
        tensor([[-100, -100,    4, -100],
                [-100, -100,    5,    6],
                [-100,    7, -100, -100],
                [-100, -100, -100, -100]])

    Notes:
        A causal model needs no attention mask for padding at the right. PADTrainer pads nothing,
        and reads a prompt once for all of its responses.
    """
    reader = GroupReader(tokenizer, chat_template_kwargs)
    read_prompts, read_responses = reader.read(prompts, responses, finish_reasons)
    most = max(map(len, read_responses), default=0)
    if most == 0:
        raise ValueError("responses must hold at least one response, got none")
    rows, labels = [], []
    for prompt, group in zip(read_prompts, read_responses, strict=True):
        for ids in [*group, *[[]] * (most - len(group))]:
            rows.append(torch.tensor([*prompt, *ids], dtype=torch.int64))
            labels.append(torch.tensor([*[IGNORE] * len(prompt), *ids], dtype=torch.int64))
    return (
        pad_sequence(rows, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    )
