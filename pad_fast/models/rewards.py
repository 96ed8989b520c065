"""A model's rewards of packed responses, without logits of prompts, padding or whole vocabularies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pad_fast.functional import (
    NORMALIZATIONS,
    linear_response_rewards,
    linear_token_logprobs,
    response_rewards,
    token_logprobs,
)
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.models import prefix_attention
from pad_fast.models.causal_lm import causal_lm, decode
from pad_fast.models.output_head import OutputHead, call_head, head_problem, output_head
from pad_fast.models.packing import PackedRows
from pad_fast.validation import check_budget

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def packed_logprobs(model: PreTrainedModel, packed: PackedRows, **options) -> Tensor:
    """Log-probability (M,) of the labels of packed rows, in nats."""
    return _from_rows(model, model, packed, linear_token_logprobs, token_logprobs, options)


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

    ``model`` is a bare causal language model (see :func:`pad_fast.models.causal_lm.causal_lm`) and ``forward`` how to get its logits, if
    not by calling it. ``memory_budget`` is that of :func:`pad_fast.linear_token_logprobs`. Where the head cannot be read (see
    :func:`pad_fast.models.output_head.head_problem`) its logits are taken.
    """
    options = {**options, "response_ids": packed.response_ids, "num_responses": num_responses}
    return _from_rows(
        model,
        forward or model,
        packed,
        linear_response_rewards,
        response_rewards,
        options,
        memory_budget,
    )


def _from_rows(
    model: PreTrainedModel,
    forward: Callable,
    packed: PackedRows,
    of_hidden: Callable[..., Tensor],
    of_logits: Callable[..., Tensor],
    options: dict,
    memory_budget: MemoryBudget = "auto",
) -> Tensor:
    reading = _reading(model, packed)
    if head_problem(model) is not None:
        return of_logits(*_logits(model, forward, packed, reading), **options)
    head = output_head(model)
    labels = packed.labels

    def at_head(hidden: Tensor, head: OutputHead) -> Tensor:
        hidden = hidden.to(head.weight.device)
        if not torch.is_autocast_enabled(
            hidden.device.type
        ):  # Mamba keeps float32 hidden states above a bfloat16 head
            hidden = hidden.to(head.weight.dtype)
        every = torch.arange(
            len(labels), device=labels.device
        )  # all of them predict a token: nothing to look for on the device
        return of_hidden(
            hidden,
            head.weight,
            labels,
            live_rows=every,
            memory_budget=memory_budget,
            **head.token_options(),
            **options,
        )

    return call_head(model, head, _hidden(model, packed, reading), at_head)


def _hidden(
    model: PreTrainedModel, packed: PackedRows, reading: dict[str, Any]
) -> Tensor:  # (M, D)
    hidden = decode(model, packed.input_ids, **reading)
    # index_select, since its gradient is an index_add: that of hidden[rows] sorts
    return hidden.flatten(0, 1).index_select(0, packed.rows.to(hidden.device))


def _logits(
    model: PreTrainedModel, forward: Callable, packed: PackedRows, reading: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The model's own logits of the M rows, and their labels. No other rows meet the head, as far as it is a module that is called."""
    narrowed: list[bool] = []

    def narrow(head: nn.Module, args: tuple) -> tuple | None:
        if not args or args[0].shape[:-1] != packed.input_ids.shape:
            return None
        narrowed.append(True)
        return args[0].flatten(0, 1).index_select(0, packed.rows.to(args[0].device))[None], *args[
            1:
        ]

    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        logits = forward(input_ids=packed.input_ids, use_cache=False, **reading).logits
    finally:
        handle.remove()
    logits = logits.flatten(0, 1)
    if not narrowed:
        logits = logits.index_select(0, packed.rows.to(logits.device))
    return logits, packed.labels.to(logits.device)


def _reading(model: PreTrainedModel, packed: PackedRows) -> dict[str, Any]:
    """What the model's forward is told of the rows, beside their ids."""
    layout = packed.layout
    if packed.position_ids is None:
        return {}
    if layout is not None and layout.shares:
        prefix_attention.install(model)
        # Ours looks at the layout alone; a mask that is there keeps the model from making one of T * T.
        mask = torch.ones((), dtype=torch.bool, device=packed.input_ids.device).expand(
            1, 1, layout.length, layout.length
        )
        return {
            "position_ids": packed.position_ids,
            "attention_mask": mask,
            "prefix_layout": layout,
        }
    if layout is not None and "flash" in prefix_attention.own_attention(model):
        ends = torch.tensor(
            [0, *(segment.stop for segment in layout.whole())],
            dtype=torch.int32,
            device=packed.input_ids.device,
        )
        longest = max(segment.prompt for segment in layout.whole())
        told = {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        return {"position_ids": packed.position_ids, **told}
    return {"position_ids": packed.position_ids}


def attach_rewards_forward(
    model: nn.Module,
    *,
    normalize: str = "mean",
    temperature: float = 1.0,
    memory_budget: MemoryBudget = "auto",
    impl: str = "auto",
) -> None:
    """Teach the innermost causal language model of ``model`` a second kind of call, beside its own::

        model(input_ids=, rows=, labels=, response_ids=, num_responses=)  ->  rewards (num_responses,), in nats per token

    with the fields of :class:`PackedRows`, ``position_ids`` and ``layout`` where they are set. The call goes through
    ``model.forward``, so that the hooks of DDP and FSDP, autocast and gradient checkpointing all see it. Calls without
    ``response_ids`` are the model's own, as before. Attaching again replaces the options.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    check_budget(memory_budget)
    options: dict[str, Any] = {
        "normalize": normalize,
        "temperature": temperature,
        "memory_budget": memory_budget,
        "impl": impl,
    }
    lm = causal_lm(model)
    head_problem(lm)  # now, while the weights are whole
    instance_forward = lm.__dict__.get("forward")
    own = getattr(
        instance_forward, "_own_forward", instance_forward
    )  # set by others, such as accelerate's device hooks

    def forward(
        self, *args, response_ids=None, num_responses=None, rows=None, layout=None, **kwargs
    ):
        call = own if own is not None else MethodType(type(self).forward, self)
        if response_ids is None:
            return call(*args, **kwargs)
        packed = PackedRows(
            kwargs["input_ids"],
            rows,
            kwargs["labels"],
            response_ids,
            kwargs.get("position_ids"),
            layout,
        )
        return packed_rewards(self, packed, num_responses, forward=call, **options)

    forward._own_forward = own  # type: ignore[attr-defined]
    # generate() and Trainer read the signature. A __wrapped__ would be wrong: accelerate's unwrapping strips forwards that have it.
    forward.__signature__ = inspect.signature(type(lm).forward)  # type: ignore[attr-defined]
    lm.forward = MethodType(forward, lm)
