"""A model's rewards of packed responses, without logits of prompts or of padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pad_fast.argument_checks import check_budget, check_choice
from pad_fast.device import autocast_dtype
from pad_fast.functional import (
    linear_response_rewards,
    linear_token_logprobs,
    response_rewards,
    token_logprobs,
)
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.linear_logprob.output_head import OutputHead
from pad_fast.logprob.responses import NORMALIZATIONS
from pad_fast.models import prefix_attention
from pad_fast.models.causal_lm import causal_lm, decode
from pad_fast.models.output_head import call_head, head_problem, read_head
from pad_fast.models.packing import PackedRows, rows_of_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RewardOptions:
    """How rewards are computed: the options of :func:`pad_fast.linear_response_rewards`.

    Args:
        normalize: "mean", or "sum" for no division by the number of tokens.
        temperature: divides the logits.
        memory_budget: bytes for forward and backward of the output head, or "auto".
        impl: "auto", "torch" or "triton".

    Raises:
        ValueError: an unknown ``normalize``, or a ``memory_budget`` that is no number of bytes.
    """

    normalize: str = "mean"
    temperature: float = 1.0
    memory_budget: MemoryBudget = "auto"
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        check_budget(self.memory_budget)


class _Operation(NamedTuple):
    """An operation on hidden states and the output head, and the same one on logits."""

    on_hidden: Callable[..., Tensor]
    on_logits: Callable[..., Tensor]


_LOGPROBS = _Operation(linear_token_logprobs, token_logprobs)
_REWARDS = _Operation(linear_response_rewards, response_rewards)


def packed_logprobs(model: PreTrainedModel, packed: PackedRows, *, impl: str = "auto") -> Tensor:
    """The log-probability (M,) of the labels of packed rows, in nats."""
    return _apply(_LOGPROBS, model, model, packed, {"impl": impl}, "auto")


def packed_rewards(
    model: PreTrainedModel,
    packed: PackedRows,
    num_responses: int,
    options: RewardOptions = RewardOptions(),
    *,
    forward: Callable | None = None,
) -> Tensor:
    """Rewards of packed responses, as :func:`pad_fast.response_rewards` defines them.

    Where the output head cannot be read (:func:`pad_fast.models.output_head.head_problem`), the
    model's own logits of the same rows are taken.

    Args:
        model: a causal language model without wrappers, see
            :func:`pad_fast.models.causal_lm.causal_lm`.
        packed: rows with M labels, on the model's device.
        num_responses: R; the response ids are 0..R-1.
        options: see :class:`RewardOptions`.
        forward: called for the model's logits in place of the model.

    Returns:
        Rewards (R,) on the rows' device, in nats per token ("sum": in nats); 0 for a response
        without a row.
    """
    arguments = {
        "normalize": options.normalize,
        "temperature": options.temperature,
        "impl": options.impl,
        "response_ids": packed.response_ids,
        "num_responses": num_responses,
    }
    return _apply(_REWARDS, model, forward or model, packed, arguments, options.memory_budget)


def _apply(
    operation: _Operation,
    model: PreTrainedModel,
    forward: Callable,
    packed: PackedRows,
    arguments: dict,
    memory_budget: MemoryBudget,
) -> Tensor:
    inputs, home = _forward_arguments(model, packed), packed.input_ids.device
    if head_problem(model) is not None:
        logits, labels = _logits(model, forward, packed, inputs)
        return operation.on_logits(logits, labels, **_on(logits.device, arguments)).to(home)

    def at_head(hidden: Tensor, head: OutputHead) -> Tensor:
        device = head.weight.device  # another one than the rows' for a model over several devices
        hidden, labels = hidden.to(device), packed.labels.to(device)
        # Mamba has float32 hidden states below a bfloat16 head.
        if autocast_dtype(hidden.device) is None:
            hidden = hidden.to(head.weight.dtype)
        # Every row predicts a token, so that the operation need not search for live rows.
        every = torch.arange(len(labels), device=device)
        found = operation.on_hidden(
            hidden,
            head,
            labels,
            live_rows=every,
            memory_budget=memory_budget,
            **_on(device, arguments),
        )
        return found.to(home)

    return call_head(model, read_head(model), _hidden(model, packed, inputs), at_head)


def _on(device: torch.device, arguments: dict) -> dict:
    """The arguments with their tensors on a device."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def _hidden(model: PreTrainedModel, packed: PackedRows, inputs: dict[str, Any]) -> Tensor:
    hidden = decode(model, packed.input_ids, **inputs)
    # The gradient of index_select is an index_add; that of hidden[rows] would sort.
    return hidden.flatten(0, 1).index_select(0, packed.rows.to(hidden.device))  # (M, D)


def _logits(
    model: PreTrainedModel, forward: Callable, packed: PackedRows, inputs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The model's own logits of the M rows, and their labels.

    A hook hands these rows alone to the head, unless the model does not call its head as a module.
    """
    narrowed: list[bool] = []

    def narrow(head: nn.Module, args: tuple) -> tuple | None:
        if not args or args[0].shape[:-1] != packed.input_ids.shape:
            return None
        narrowed.append(True)
        rows = args[0].flatten(0, 1).index_select(0, packed.rows.to(args[0].device))
        return rows[None], *args[1:]

    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        logits = forward(input_ids=packed.input_ids, use_cache=False, **inputs).logits
    finally:
        handle.remove()
    logits = logits.flatten(0, 1)
    if not narrowed:
        logits = logits.index_select(0, packed.rows.to(logits.device))
    return logits, packed.labels.to(logits.device)


def _forward_arguments(model: PreTrainedModel, packed: PackedRows) -> dict[str, Any]:
    """The arguments of the model's forward that describe the rows, in addition to their ids."""
    layout, device = packed.layout, packed.input_ids.device
    if packed.position_ids is None:
        return {}
    arguments: dict[str, Any] = {"position_ids": packed.position_ids}
    if layout is not None and layout.shares:
        prefix_attention.install(model)
        # Our attention reads the layout alone. Given a mask of four dimensions, the model does not
        # make one of T * T. This has one entry, for all pairs: a view of T * T would become a whole
        # tensor where accelerate's hooks copy a layer's arguments to the layer's own device.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        return {**arguments, "attention_mask": mask, "prefix_layout": layout}
    if layout is not None and prefix_attention.takes_sequence_ends(model):
        segments = list(layout.segments_and_padding())
        stops = [0, *(segment.stop for segment in segments)]
        ends = torch.tensor(stops, dtype=torch.int32, device=device)
        longest = max(segment.prompt for segment in segments)
        arguments |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        arguments |= {"max_length_q": longest, "max_length_k": longest}
    return arguments


def attach_rewards_forward(
    model: nn.Module,
    *,
    normalize: str = "mean",
    temperature: float = 1.0,
    memory_budget: MemoryBudget = "auto",
    impl: str = "auto",
) -> None:
    """Give the causal language model inside ``model`` a second kind of call, for rewards::

        model(input_ids=, labels=, want_rewards=True)  ->  rewards (R,)

    ``input_ids`` and ``labels`` are (R, T), padded on the right, as
    :func:`pad_fast.encode_responses` makes them. The call goes through ``model.forward``, so that
    DDP, FSDP, ZeRO, autocast and activation checkpointing see it and average gradients. Other calls
    are the model's own.

    Args:
        model: a causal language model, before ``accelerate.prepare`` or any wrapper shards it.
            Attaching again replaces the options.
        normalize, temperature, memory_budget, impl: see :func:`pad_fast.linear_response_rewards`.

    Raises:
        ValueError: invalid options, or a model whose output head is not linear.

    Example:
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=9, hidden_size=32, num_hidden_layers=1)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> attach_rewards_forward(model)
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([[-100, 2, 3]])
        >>> model(input_ids=ids, labels=labels, want_rewards=True).shape
        torch.Size([1])

    Notes:
        The trainer's own call has ``rows``, ``response_ids`` and ``num_responses`` in place of
        ``want_rewards``: the fields of :class:`pad_fast.models.packing.PackedRows`.
    """
    options = RewardOptions(normalize, temperature, memory_budget, impl)
    lm = causal_lm(model)
    head_problem(lm)  # now, since wrappers may shard the weights later
    # Set by others, such as accelerate's device hooks, or by an earlier call of this function.
    instance_forward = lm.__dict__.get("forward")
    own = getattr(instance_forward, "_own_forward", instance_forward)

    def forward(self, *args, want_rewards=False, response_ids=None, num_responses=None, **kwargs):
        call = own if own is not None else MethodType(type(self).forward, self)
        if want_rewards:
            packed = rows_of_labels(*args, **kwargs)
            return packed_rewards(self, packed, len(packed.input_ids), options, forward=call)
        if response_ids is None:
            return call(*args, **kwargs)
        fields = {name: kwargs[name] for name in PackedRows._fields if name in kwargs}
        packed = PackedRows(**fields, response_ids=response_ids)
        return packed_rewards(self, packed, num_responses, options, forward=call)

    forward._own_forward = own  # type: ignore[attr-defined]
    # generate() and Trainer read the signature. functools.wraps would not do: accelerate removes
    # forwards that have a __wrapped__ when it unwraps a model.
    forward.__signature__ = inspect.signature(type(lm).forward)  # type: ignore[attr-defined]
    lm.forward = MethodType(forward, lm)
