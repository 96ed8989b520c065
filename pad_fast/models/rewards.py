"""Packed rows of (prompt, response) pairs, and a model's rewards of them without logits of prompts, padding or whole vocabularies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pad_fast.budget import MemoryBudget
from pad_fast.functional import (
    NORMALIZATIONS,
    linear_response_rewards,
    linear_token_logprobs,
    response_rewards,
    token_logprobs,
)
from pad_fast.models.heads import OutputHead, call_head, causal_lm, decode, head_problem, output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD_ID = 0  # any id does: what stands right of a sequence is never looked at


class PackedRows(NamedTuple):
    """R sequences padded on the right to T tokens, and the M rows of them, flattened, that predict a response's tokens."""

    input_ids: Tensor  # (R, T) prompt and response; a response's last token predicts nothing and is left out
    rows: Tensor  # (M,) places in the flattened (R * T)
    labels: Tensor  # (M,) the token that each row predicts
    response_ids: Tensor  # (M,) the response that each row belongs to


def pack_rows(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], response_ids: Sequence[int] | None = None) -> PackedRows:
    """Pairs of prompt and response ids, neither empty; ``response_ids`` numbers the pairs, 0, 1, ... if left out."""
    numbers = range(len(pairs)) if response_ids is None else response_ids
    width = max((len(prompt) + len(response) - 1 for prompt, response in pairs), default=0)
    input_ids = np.full((len(pairs), width), PAD_ID, dtype=np.int64)
    rows = []
    for r, (prompt, response) in enumerate(pairs):
        input_ids[r, : len(prompt)] = prompt
        input_ids[r, len(prompt) : len(prompt) + len(response) - 1] = response[:-1]
        first = r * width + len(prompt) - 1
        rows.append(np.arange(first, first + len(response)))
    lengths = [len(response) for _, response in pairs]
    labels = [np.asarray(response, dtype=np.int64) for _, response in pairs]
    return PackedRows(
        torch.from_numpy(input_ids),
        torch.from_numpy(np.concatenate([*rows, np.empty(0, np.int64)])),
        torch.from_numpy(np.concatenate([*labels, np.empty(0, np.int64)])),
        torch.from_numpy(np.repeat(np.asarray(numbers, dtype=np.int64), lengths)),
    )


def packed_logprobs(model: PreTrainedModel, input_ids: Tensor, rows: Tensor, labels: Tensor, **options) -> Tensor:
    """Log-probability (M,) of ``labels`` (M,) at the flattened places ``rows`` (M,) of ``input_ids`` (R, T), in nats."""
    return _from_rows(model, model, input_ids, rows, labels, linear_token_logprobs, token_logprobs, options)


def packed_rewards(
    model: PreTrainedModel,
    packed: PackedRows,
    num_responses: int,
    *,
    forward: Callable | None = None,
    memory_budget: MemoryBudget = "auto",
    **options,
) -> Tensor:  # (num_responses,)
    """Rewards of packed responses as :func:`pad_fast.response_rewards` defines them; ``options`` are its options.

    ``model`` is a bare causal language model (see :func:`pad_fast.models.heads.causal_lm`) and ``forward`` how to get its logits, if
    not by calling it. ``memory_budget`` is that of :func:`pad_fast.linear_token_logprobs`. Where the head cannot be read (see
    :func:`pad_fast.models.heads.head_problem`) its logits are taken.
    """
    options = {**options, "response_ids": packed.response_ids, "num_responses": num_responses}
    functions = (linear_response_rewards, response_rewards)
    return _from_rows(model, forward or model, packed.input_ids, packed.rows, packed.labels, *functions, options, memory_budget)


def _from_rows(
    model: PreTrainedModel,
    forward: Callable,
    input_ids: Tensor,
    rows: Tensor,
    labels: Tensor,
    of_hidden: Callable[..., Tensor],
    of_logits: Callable[..., Tensor],
    options: dict,
    memory_budget: MemoryBudget = "auto",
) -> Tensor:
    if head_problem(model) is not None:
        logits = forward(input_ids=input_ids, use_cache=False).logits
        return of_logits(logits.flatten(0, 1).index_select(0, rows.to(logits.device)), labels.to(logits.device), **options)
    head = output_head(model)
    hidden = decode(model, input_ids)
    # index_select, since its gradient is an index_add: that of hidden[rows] sorts
    hidden = hidden.flatten(0, 1).index_select(0, rows.to(hidden.device))

    def at_head(hidden: Tensor, head: OutputHead) -> Tensor:
        hidden = hidden.to(head.weight.device)
        if not torch.is_autocast_enabled(hidden.device.type):  # Mamba keeps float32 hidden states above a bfloat16 head
            hidden = hidden.to(head.weight.dtype)
        every = torch.arange(len(labels), device=labels.device)  # all of them predict a token: nothing to look for on the device
        return of_hidden(
            hidden, head.weight, labels, live_rows=every, memory_budget=memory_budget, **head.token_options(), **options
        )  # fmt: skip

    return call_head(model, head, hidden, at_head)


def attach_rewards_forward(model: nn.Module, *, normalize: str = "mean", temperature: float = 1.0, impl: str = "auto") -> None:
    """Teach the innermost causal language model of ``model`` a second kind of call, beside its own::

        model(input_ids=, rows=, labels=, response_ids=, num_responses=)  ->  rewards (num_responses,), in nats per token

    with the fields of :class:`PackedRows`. The call goes through ``model.forward``, so that the hooks of DDP and FSDP, autocast and
    gradient checkpointing all see it. Calls without ``response_ids`` are the model's own, as before. Attaching again replaces the
    options.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    lm = causal_lm(model)
    head_problem(lm)  # now, while the weights are whole
    instance_forward = lm.__dict__.get("forward")
    own = getattr(instance_forward, "_own_forward", instance_forward)  # set by others, such as accelerate's device hooks

    def forward(self, *args, response_ids=None, num_responses=None, rows=None, **kwargs):
        call = own if own is not None else MethodType(type(self).forward, self)
        if response_ids is None:
            return call(*args, **kwargs)
        packed = PackedRows(kwargs["input_ids"], rows, kwargs["labels"], response_ids)
        return packed_rewards(self, packed, num_responses, forward=call, normalize=normalize, temperature=temperature, impl=impl)

    forward._own_forward = own  # type: ignore[attr-defined]
    # generate() and Trainer read the signature. A __wrapped__ would be wrong: accelerate's unwrapping strips forwards that have it.
    forward.__signature__ = inspect.signature(type(lm).forward)  # type: ignore[attr-defined]
    lm.forward = MethodType(forward, lm)
