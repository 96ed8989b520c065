"""Rewards of given responses, and probabilities of next tokens, under any causal language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.models.causal_lm import (
    causal_lm,
    evaluating,
    input_embedding,
    model_window,
    vocabulary_size,
)
from pad_fast.models.layout import PromptGroup, TokenIds, first_equal
from pad_fast.models.layout_trial import choose_layout, pack_for
from pad_fast.models.neighbour_effects import Sides, sides_of
from pad_fast.models.output_head import read_head
from pad_fast.models.own_tokenizer import check_tokenizer
from pad_fast.models.packing import PackedRows, pack_rows, split
from pad_fast.models.prefix_attention import installed
from pad_fast.models.rewards import RewardOptions, packed_logprobs, packed_rewards
from pad_fast.models.similar_lengths import longest_first
from pad_fast.models.token_ids import TokenIdReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int], object]


@torch.no_grad()
def score_responses(
    model: nn.Module,
    prompts: Sequence[Any],
    responses: Sequence[Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    finish_reasons: Sequence[Sequence[str]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    normalize: str = "mean",
    temperature: float = 1.0,
    share_prefix: str | bool = "auto",
    max_tokens_per_batch: int = 8192,
    memory_budget: MemoryBudget = "auto",
    progress: Progress | None = None,
    impl: str = "auto",
) -> list[list[float]]:
    """Reward of each response: r(y|x) = 1/|y| * sum_t log pi(y_t | x, y_<t), in nats per token.

    Args:
        model: a transformers causal language model, in any wrappers.
        prompts: P texts as they stand, chat messages, or token ids.
        responses: ``responses[p][i]``, a text, a list of one message, or ids. Texts get
            the end of turn that they lack.
        tokenizer: the model's own, for texts and messages; another's ids are other tokens, which is
            checked where this disk has that of the model's folder or name.
        finish_reasons: as ``responses``; "length" for a text that gets no end.
        chat_template_kwargs: for the template.
        normalize: "mean", or "sum" for no division by |y|.
        temperature: divides logits.
        share_prefix: "auto", or whether a prompt is read once for all responses.
        max_tokens_per_batch: tokens with padding.
        memory_budget: bytes, see :func:`pad_fast.linear_token_logprobs`.
        progress: called with each batch's number of responses.
        impl: "auto", "torch" or "triton".

    Returns:
        ``rewards[p][i]``; 0.0 for an empty response.

    Raises:
        ValueError: what was given cannot be scored; the message names it.

    Example:
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=9, hidden_size=32, num_hidden_layers=1)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> [[a, b]] = score_responses(model, [[1, 2]], [[[3, 4], []]])
        >>> a < 0.0, b
        (True, 0.0)
    """
    lm = causal_lm(model)
    reader = TokenIdReader(tokenizer, chat_template_kwargs)
    check_tokenizer(lm, tokenizer)
    prompts, responses = reader.read(prompts, responses, finish_reasons)
    options = RewardOptions(normalize, temperature, memory_budget, impl)
    _check_sequences(lm, prompts, responses)
    equal = [first_equal(ys) for ys in responses]  # equal responses are read once
    live = [(p, i) for p, ys in enumerate(responses) for i, y in enumerate(ys) if len(y)]
    places = [(p, i) for p, i in live if equal[p][i] == i]
    counts = Counter((p, equal[p][i]) for p, i in live)
    rewards = [[0.0] * len(ys) for ys in responses]
    _report(progress, sum(map(len, responses)) - len(live))
    groups = _groups(prompts, responses, places)
    layout = choose_layout(lm, groups, share_prefix, gradients=False, impl=impl)
    with evaluating(lm), installed(lm, layout):
        for batch in _batches_of_groups(groups, layout, max_tokens_per_batch, sides_of(lm)):
            numbers = [number for group in batch for number in group.numbers]
            packed = pack_for(lm, _renumbered(batch), layout)
            found = packed_rewards(lm, packed, len(numbers), options)
            for number, reward in zip(numbers, found.tolist(), strict=True):
                p, i = places[number]
                rewards[p][i] = reward
            _report(progress, sum(counts[places[number]] for number in numbers))
    return [[found[i] for i in firsts] for found, firsts in zip(rewards, equal, strict=True)]


@torch.no_grad()
def next_token_logprobs(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    token_ids: Sequence[int],
    *,
    max_tokens_per_batch: int = 8192,
    progress: Progress | None = None,
    impl: str = "auto",
) -> list[list[float]]:
    """log pi(token | prompt), in nats, of each of ``token_ids`` as the token after each prompt.

    Args:
        model, prompts, max_tokens_per_batch, impl: as for :func:`score_responses`.
        token_ids: K ids, at least one.
        progress: called with the number of prompts of each finished batch.

    Returns:
        ``logprobs[p][k]`` of ``token_ids[k]`` after ``prompts[p]``.

    Raises:
        ValueError: no token ids, or prompts that :func:`score_responses` would refuse.
    """
    lm = causal_lm(model)
    if len(token_ids) == 0:
        raise ValueError("token_ids must not be empty")
    candidates = [token_ids[k : k + 1] for k in range(len(token_ids))]
    _check_sequences(lm, prompts, [candidates] * len(prompts))
    found: list[list[float]] = [[] for _ in prompts]
    asked = torch.tensor(list(token_ids), dtype=torch.int64)
    lengths = [len(prompt) for prompt in prompts]
    with evaluating(lm):
        for batch in _batches(lengths, max_tokens_per_batch, sides_of(lm)):
            # One token is packed in place of all: its row is that of the prompt's last token.
            packed = pack_rows([(prompts[p], token_ids[:1]) for p in batch])
            rows, labels = packed.rows.repeat_interleave(len(asked)), asked.repeat(len(batch))
            packed = PackedRows(packed.input_ids, rows, labels, rows).on(input_embedding(lm).device)
            logps = packed_logprobs(lm, packed, impl=impl)
            for p, values in zip(batch, logps.view(len(batch), -1).tolist(), strict=True):
                found[p] = values
            _report(progress, len(batch))
    return found


def _groups(
    prompts: Sequence[TokenIds],
    responses: Sequence[Sequence[TokenIds]],
    places: Sequence[tuple[int, int]],
) -> list[PromptGroup]:
    """The responses at ``places`` (prompt, response), grouped by prompt and numbered in order."""
    held: dict[int, PromptGroup] = {}
    for number, (p, i) in enumerate(places):
        group = held.setdefault(p, PromptGroup(prompts[p], [], []))
        group.responses.append(responses[p][i])  # type: ignore[attr-defined]
        group.numbers.append(number)  # type: ignore[attr-defined]
    return list(held.values())


def _batches_of_groups(
    groups: Sequence[PromptGroup], layout: str, max_tokens: int, sides: Sides
) -> Iterator[list[PromptGroup]]:
    """Longest first, so that a run that does not fit in memory fails at once."""
    _check_max_tokens(max_tokens)
    if layout == "shared":
        longest = sorted(
            groups, key=lambda group: -len(group.prompt) - sum(map(len, group.responses))
        )
        yield from split(longest, max_tokens, layout, sides)
        return
    single = [
        PromptGroup(prompt, [y], [i])
        for prompt, ys, numbers in groups
        for y, i in zip(ys, numbers, strict=True)
    ]
    lengths = [len(prompt) + len(ys[0]) - 1 for prompt, ys, _ in single]
    for batch in _batches(lengths, max_tokens, sides):
        yield [single[index] for index in batch]


def _renumbered(batch: Sequence[PromptGroup]) -> list[PromptGroup]:
    """The batch with its responses numbered 0, 1, ..."""
    first, found = 0, []
    for prompt, responses, numbers in batch:
        found.append(PromptGroup(prompt, responses, range(first, first + len(numbers))))
        first += len(numbers)
    return found


def _batches(lengths: Sequence[int], max_tokens: int, sides: Sides) -> Iterator[list[int]]:
    """Indices in batches of at most ``max_tokens`` tokens, padding included."""
    _check_max_tokens(max_tokens)
    return longest_first(lengths, lambda longest: max_tokens // max(1, longest), sides)


def _check_max_tokens(max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens_per_batch must be at least 1, got {max_tokens}")


def _check_sequences(
    lm: PreTrainedModel, prompts: Sequence[TokenIds], responses: Sequence[Sequence[TokenIds]]
) -> None:
    read_head(lm)  # raises for a model without a head that we can read
    window, vocabulary = model_window(lm), vocabulary_size(lm)
    for p, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        if len(prompt) == 0:
            raise ValueError(
                "prompts must not be empty: the first token of a response needs one before it; "
                f"got prompt {p} with no token"
            )
        _check_ids(f"prompts[{p}]", prompt, vocabulary)
        for i, response in enumerate(group):
            _check_ids(f"responses[{p}][{i}]", response, vocabulary)
            if window is not None and len(prompt) + len(response) > window:
                raise ValueError(
                    f"a prompt and its response must fit into the model's window of {window} "
                    f"tokens (max_position_embeddings), got prompt {p} of {len(prompt)} "
                    f"and response {i} of {len(response)} tokens"
                )


def _check_ids(name: str, ids: TokenIds, vocabulary: int) -> None:
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocabulary):
        bad = next(token for token in ids if not 0 <= token < vocabulary)
        raise ValueError(
            f"{name} must hold token ids in 0..{vocabulary - 1}, got {bad}; ids have to be "
            "those of the model's own tokenizer"
        )


def _report(progress: Progress | None, count: int) -> None:
    if progress is not None and count:
        progress(count)
