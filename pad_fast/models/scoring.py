"""Rewards of given responses, and probabilities of next tokens, under any transformers causal language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from pad_fast.functional import NORMALIZATIONS
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.models.causal_lm import causal_lm, evaluating, input_embedding, vocabulary_size
from pad_fast.models.layout import Group
from pad_fast.models.layout_trial import choose_layout, takes_one_row
from pad_fast.models.output_head import output_head
from pad_fast.models.packing import PackedRows, pack, pack_rows, split
from pad_fast.models.prefix_attention import installed
from pad_fast.models.rewards import packed_logprobs, packed_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = Sequence[int]
Progress = Callable[[int], object]


@torch.no_grad()
def score_responses(
    model: nn.Module,
    prompts: Sequence[Ids],
    responses: Sequence[Sequence[Ids]],
    *,
    normalize: str = "mean",
    temperature: float = 1.0,
    share_prefix: str | bool = "auto",
    max_tokens_per_batch: int = 8192,
    memory_budget: MemoryBudget = "auto",
    progress: Progress | None = None,
    impl: str = "auto",
) -> list[list[float]]:
    """Reward of each response, r(y|x) = 1/|y| * sum_t log pi(y_t | x, y_<t), in nats per token (PAD, arXiv 2502.14272, section 3.1).

    A prompt is read once for all of its responses. Groups, or where nothing is shared sequences of like length, make batches of at
    most ``max_tokens_per_batch`` tokens with their padding (a response longer than that is a batch by itself), and only the rows of
    responses pass the output head, so that whole logits never exist. Tokens are scored as given, nothing is appended. The model is
    put into evaluation mode, and back. Nothing is differentiated.

    Args:
        model: a transformers causal language model, wrapped by PEFT or not, in any float dtype, where it is.
        prompts: token ids, P lists, none of them empty.
        responses: ``responses[p][i]``, token ids of response i to prompt p; an empty one has reward 0.0.
        normalize: "mean", or "sum" for no division by |y|.
        share_prefix: "auto" shares prompts where a trial on the first groups gives the rewards that each response has alone, and says
            why where it does not; True raises there; False shares nothing.
        memory_budget: bytes beside the model's own, see :func:`pad_fast.linear_token_logprobs`; 0 takes the least.
        progress: called with the number of responses that were finished, batch by batch.

    Returns:
        ``rewards[p][i]`` in nats per token ("sum": in nats), accumulated in float32, or in float64 for a float64 model.

    Raises:
        ValueError: an empty prompt, a prompt with a response longer than the model's window, an id outside of its vocabulary,
            ``share_prefix=True`` with a model that cannot.
    """
    lm = causal_lm(model)
    if len(prompts) != len(responses):
        raise ValueError(
            f"responses must hold one list for each of the {len(prompts)} prompts, got {len(responses)}"
        )
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    _check_sequences(lm, prompts, responses)
    places = [
        (p, i)
        for p, group in enumerate(responses)
        for i, response in enumerate(group)
        if len(response)
    ]
    rewards = [[0.0] * len(group) for group in responses]
    _report(progress, sum(len(group) for group in responses) - len(places))
    groups = _groups(prompts, responses, places)
    layout = choose_layout(lm, groups, share_prefix, gradients=False)
    device = input_embedding(lm).device
    options = {"one_row": takes_one_row(lm), "bucketed": device.type != "cpu"}
    with evaluating(lm), installed(lm):
        for batch in _batches_of(groups, layout, max_tokens_per_batch):
            chosen = [number for group in batch for number in group.numbers]
            packed = pack(_renumbered(batch), layout, **options).on(device)
            found = packed_rewards(
                lm,
                packed,
                len(chosen),
                memory_budget=memory_budget,
                normalize=normalize,
                temperature=temperature,
                impl=impl,
            )
            for number, reward in zip(chosen, found.tolist(), strict=True):
                p, i = places[number]
                rewards[p][i] = reward
            _report(progress, len(chosen))
    return rewards


@torch.no_grad()
def next_token_logprobs(
    model: nn.Module,
    prompts: Sequence[Ids],
    token_ids: Sequence[int],
    *,
    max_tokens_per_batch: int = 8192,
    progress: Progress | None = None,
    impl: str = "auto",
) -> list[list[float]]:
    """log pi(token | prompt), in nats, of each of ``token_ids`` as the token after each prompt; no text is generated.

    Batches, modes and errors are those of :func:`score_responses`; ``progress`` counts prompts.

    Returns:
        ``logprobs[p][k]`` of ``token_ids[k]`` after ``prompts[p]``.
    """
    lm = causal_lm(model)
    if len(token_ids) == 0:
        raise ValueError("token_ids must not be empty")
    _check_sequences(
        lm, prompts, [[token_ids[k : k + 1] for k in range(len(token_ids))]] * len(prompts)
    )
    found: list[list[float]] = [[] for _ in prompts]
    asked = torch.tensor(list(token_ids), dtype=torch.int64)
    with evaluating(lm):
        for batch in _batches([len(prompt) for prompt in prompts], max_tokens_per_batch):
            # the first of the tokens stands for all: its row is the prompt's last
            packed = pack_rows([(prompts[p], token_ids[:1]) for p in batch])
            rows, labels = packed.rows.repeat_interleave(len(asked)), asked.repeat(len(batch))
            packed = PackedRows(packed.input_ids, rows, labels, rows).on(input_embedding(lm).device)
            logps = packed_logprobs(lm, packed, impl=impl)
            for p, values in zip(batch, logps.view(len(batch), -1).tolist(), strict=True):
                found[p] = values
            _report(progress, len(batch))
    return found


def model_window(model: nn.Module) -> int | None:
    """The most tokens of prompt and response that the model was made for; None if its config has no such number."""
    return getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)


def _groups(
    prompts: Sequence[Ids], responses: Sequence[Sequence[Ids]], places: Sequence[tuple[int, int]]
) -> list[Group]:
    """Groups of the responses that have a token, numbered by their places."""
    held: dict[int, Group] = {}
    for number, (p, i) in enumerate(places):
        group = held.setdefault(p, Group(prompts[p], [], []))
        group.responses.append(responses[p][i])  # type: ignore[attr-defined]
        group.numbers.append(number)  # type: ignore[attr-defined]
    return list(held.values())


def _batches_of(groups: Sequence[Group], layout: str, budget: int) -> Iterator[list[Group]]:
    """Longest first: what does not fit in memory fails at once."""
    if layout == "shared":
        longest = sorted(
            groups, key=lambda group: -len(group.prompt) - sum(map(len, group.responses))
        )
        yield from split(longest, _checked(budget), layout)
        return
    single = [
        Group(prompt, [y], [i])
        for prompt, ys, numbers in groups
        for y, i in zip(ys, numbers, strict=True)
    ]
    for batch in _batches([len(prompt) + len(ys[0]) - 1 for prompt, ys, _ in single], budget):
        yield [single[index] for index in batch]


def _renumbered(batch: Sequence[Group]) -> list[Group]:
    """The batch with its responses numbered 0, 1, ..."""
    first, found = 0, []
    for prompt, responses, numbers in batch:
        found.append(Group(prompt, responses, range(first, first + len(numbers))))
        first += len(numbers)
    return found


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of at most ``budget`` tokens with padding, longest first: what does not fit in memory fails at once."""
    budget = _checked(budget)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _checked(budget: int) -> int:
    if budget < 1:
        raise ValueError(f"max_tokens_per_batch must be at least 1, got {budget}")
    return budget


def _check_sequences(
    lm: PreTrainedModel, prompts: Sequence[Ids], responses: Sequence[Sequence[Ids]]
) -> None:
    output_head(lm)  # raises where there is none that we can read
    window, vocabulary = model_window(lm), vocabulary_size(lm)
    for p, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        if len(prompt) == 0:
            raise ValueError(
                f"prompts must not be empty: the first token of a response needs one before it; got prompt {p} with no token"
            )
        _check_ids(f"prompts[{p}]", prompt, vocabulary)
        for i, response in enumerate(group):
            _check_ids(f"responses[{p}][{i}]", response, vocabulary)
            if window is not None and len(prompt) + len(response) > window:
                raise ValueError(
                    f"a prompt and its response must fit into the model's window of {window} tokens (max_position_embeddings), "
                    f"got prompt {p} of {len(prompt)} and response {i} of {len(response)} tokens"
                )


def _check_ids(name: str, ids: Ids, vocabulary: int) -> None:
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocabulary):
        bad = next(token for token in ids if not 0 <= token < vocabulary)
        raise ValueError(f"{name} must hold token ids in 0..{vocabulary - 1}, got {bad}")


def _report(progress: Progress | None, count: int) -> None:
    if progress is not None and count:
        progress(count)
