"""The losses from logits or hidden states: drop-in modules, and the function under them.

R = P * N responses stand prompt by prompt: response i of prompt p is row p * N + i of padded scores (R, T, ...), or has that number
in the ``response_ids`` (M,) of packed scores (M, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pad_fast import functional, validation
from pad_fast.linear_logprob import memory_budget as memory_budget_module
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.linear_logprob.prompt_chunks import Groups, GroupWalk
from pad_fast.logprob.softmax import TokenOptions
from pad_fast.losses import check_loss, preference_loss
from pad_fast.preference import kinds


def linear_preference_loss(
    hidden: Tensor,  # (R, T, D) or (M, D)
    weight: Tensor,  # (V, D)
    labels: Tensor,  # (R, T) or (M,)
    teacher_rewards: Tensor,  # (P, N)
    *,
    bias: Tensor | None = None,  # (V,)
    response_ids: Tensor | None = None,  # (M,)
    mask: Tensor | None = None,  # (P, N) bool
    live_rows: Tensor | None = None,  # (L,) int64
    memory_budget: MemoryBudget = "auto",
    **options: Any,
) -> tuple[Tensor, Tensor]:  # () or, with reduction="none", (P,); (P, N)
    """The listwise loss of a student's hidden states and output head, and the rewards (P, N) that it saw, detached.

    In two lines: ``rewards = linear_response_rewards(hidden, weight, labels, ...)``, then
    ``probabilistic_preference_loss(rewards.view(P, N), teacher_rewards, ...)``. ``mask`` is True for live responses; one without
    tokens is never live. ``options`` are those of :class:`LinearPADLoss`.

    Where ``memory_budget`` has no room for the scores of all rows (see :func:`linear_token_logprobs`), whole prompts are done one
    chunk after another, gradients included, in the forward: 3 products still, with the scores of as many prompts as have room. Beside
    the budget that takes the weight's gradient once more, in float32. It equals the two lines but for rounding, and waits for the
    device twice, for rows and their numbers. The two lines themselves are taken where the budget has no room for the largest prompt, or
    for the rows of one product: rows are then computed again (4 products). So they are for ``reduction="none"``, whose upstream gradient
    is one number a prompt, for sampled rankings, whose draws belong to the whole batch, in float16, whose loss scaling comes from
    outside, without a gradient of the head, and under torch.compile.

    Raises ValueError where R is not P * N, for an option that doesn't exist, and as those two functions do.
    """
    rewards = partial(
        functional.linear_response_rewards,
        weight=weight,
        bias=bias,
        live_rows=live_rows,
        memory_budget=memory_budget,
    )
    walk = partial(_walk_groups, weight=weight, bias=bias, memory_budget=memory_budget)
    return _preference_loss(
        rewards, hidden, labels, teacher_rewards, response_ids, mask, walk=walk, **options
    )


def _preference_loss(
    reward_function: Callable[..., Tensor],
    scores: Tensor,
    labels: Tensor,
    teacher_rewards: Tensor,
    response_ids: Tensor | None,
    mask: Tensor | None,
    *,
    loss: str = "ppd",
    normalize: str = "mean",
    shift: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    impl: str = "auto",
    walk: Callable[..., tuple[Tensor, Tensor] | None] | None = None,
    **loss_options: Any,
) -> tuple[Tensor, Tensor]:
    check_loss(loss, loss_options)
    _check_prompts(labels, teacher_rewards, response_ids, mask)
    if shift:
        scores, labels = scores[..., :-1, :], labels[..., 1:]
        response_ids = None if response_ids is None else response_ids[1:]
    split: dict[str, Any] = {
        "response_ids": response_ids,
        "num_responses": teacher_rewards.numel(),
        "ignore_index": ignore_index,
    }
    token_options: dict[str, Any] = {
        "temperature": temperature,
        "softcap": softcap,
        "logit_scale": logit_scale,
        "impl": impl,
    }
    # The reward of an empty response is 0, the best log-probability there is.
    live = (functional.response_lengths(labels, **split) > 0).view(teacher_rewards.shape)
    live = live if mask is None else live & mask
    if (
        walk is not None
        and (
            found := walk(
                scores,
                labels,
                teacher_rewards,
                live,
                response_ids,
                loss,
                normalize,
                ignore_index,
                token_options,
                loss_options,
            )
        )
        is not None
    ):
        return found
    rewards = reward_function(
        scores, labels=labels, normalize=normalize, **split, **token_options
    ).view(teacher_rewards.shape)
    return preference_loss(
        loss, rewards, teacher_rewards, mask=live, impl=impl, **loss_options
    ), rewards.detach()


def _walk_groups(
    hidden: Tensor,
    labels: Tensor,
    teacher: Tensor,
    live: Tensor,
    response_ids: Tensor | None,
    loss: str,
    normalize: str,
    ignore_index: int,
    token_options: dict[str, Any],
    loss_options: dict[str, Any],
    *,
    weight: Tensor,
    bias: Tensor | None,
    memory_budget: MemoryBudget,
) -> tuple[Tensor, Tensor] | None:
    """Loss and rewards by :mod:`pad_fast.linear_logprob.prompt_chunks`; None where the two-step path is as good or has to be taken."""
    validation.check_budget(memory_budget)
    hidden, weight, bias = functional.cast_as_linear(hidden, weight, bias)
    vocabulary, width = validation.check_linear(hidden, weight, bias, labels)
    sizes: dict[str, Any] = {
        "width": width,
        "vocabulary": vocabulary,
        "dtype": weight.dtype,
        "device": weight.device,
    }

    def all_kept(rows: int) -> bool:
        return memory_budget_module.saved_rows(memory_budget, rows, **sizes) == rows

    room, least = (
        memory_budget_module.walked_rows(memory_budget, **sizes),
        memory_budget_module.chunk_rows(vocabulary, weight.device),
    )
    if (
        not _separable(teacher.shape[1], loss, **loss_options)
        or room < least
        or all_kept(labels.numel())
    ):
        return None
    head_needs = weight.requires_grad or (bias is not None and bias.requires_grad)
    if (
        torch.compiler.is_compiling()
        or not (torch.is_grad_enabled() and head_needs)
        or weight.dtype == torch.float16
    ):
        return None
    impl, options = token_options["impl"], {**loss_options}
    reduction = options.pop("reduction", "mean")
    validation.check_token_options(
        token_options["temperature"],
        token_options["softcap"],
        token_options["logit_scale"],
        ignore_index,
    )
    flat, ids = labels.reshape(-1), response_ids
    if ids is None:
        ids = torch.arange(len(labels), device=labels.device).repeat_interleave(labels.shape[1])
    validation.check_label_values(flat, vocabulary, ignore_index)
    validation.check_response_values(ids, teacher.numel())
    groups = Groups.of(flat, ids, len(teacher), teacher.shape[1], ignore_index)
    if max(groups.sizes, default=0) > room or all_kept(len(groups.rows)):
        return None

    def loss_of(rewards: Tensor, prompts: slice) -> Tensor:
        return preference_loss(
            loss,
            rewards,
            teacher[prompts],
            mask=live[prompts],
            reduction="none",
            impl=impl,
            **options,
        )

    numbers = TokenOptions(
        token_options["temperature"],
        token_options["softcap"] or 0.0,
        token_options["logit_scale"],
        ignore_index,
    )
    arguments = (groups, room, numbers, impl, normalize == "mean", loss_of)
    total, rewards = GroupWalk.apply(hidden.reshape(-1, width), weight, bias, flat, *arguments)
    return total if reduction == "sum" else total / (live.sum(1) > 1).sum().clamp(min=1), rewards


def _separable(
    count: int, loss: str, *, reduction: str = "mean", method: str = "auto", divergence: str | None = None,
    group_size: int | None = None, **_: Any,
) -> bool:  # fmt: skip
    """Whether a prompt's loss needs nothing of the others, and the outer gradient is one number."""
    n = count if group_size is None else min(count, group_size)
    exact = kinds.LOSSES[loss].kind(divergence).is_exact(method, n)
    return exact and reduction in ("mean", "sum")


def _check_prompts(
    labels: Tensor, teacher_rewards: Tensor, response_ids: Tensor | None, mask: Tensor | None
) -> None:
    if teacher_rewards.ndim != 2:
        raise ValueError(f"teacher_rewards must be (P, N), got {validation.shape(teacher_rewards)}")
    if response_ids is None and len(labels) != teacher_rewards.numel():
        rows = f"P * N = {teacher_rewards.numel()} rows for teacher_rewards {validation.shape(teacher_rewards)}"
        raise ValueError(
            f"labels must have {rows}, unless response_ids are given; got {validation.shape(labels)}"
        )
    if mask is not None and (mask.shape != teacher_rewards.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool of shape {validation.shape(teacher_rewards)}, got {mask.dtype} {validation.shape(mask)}"
        )
