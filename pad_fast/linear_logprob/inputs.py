"""The checked arguments of log-probabilities from hidden states, and how their rows are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pad_fast import argument_checks
from pad_fast.device import autocast_dtype, can_read_values
from pad_fast.dispatch import resolve_impl
from pad_fast.linear_logprob import memory_budget as budgets
from pad_fast.linear_logprob import op
from pad_fast.linear_logprob.head import Head
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.logprob.softmax import TokenOptions

# Dtypes that hidden states and the head may have at the same time.
MIXED = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class LinearInputs:
    """Hidden states, output head and labels, checked and cast once."""

    hidden: Tensor  # (M, D), in the dtype that autocast asks for
    head: Head  # likewise
    labels: Tensor  # (M,)
    live_rows: Tensor | None  # (L,) int64, places of the labels that count
    memory_budget: MemoryBudget
    impl: str  # "torch" or "triton"

    @classmethod
    def checked(
        cls,
        hidden: Tensor,  # (..., D)
        weight: Tensor,  # (V, D)
        labels: Tensor,  # (...)
        bias: Tensor | None,  # (V,)
        live_rows: Tensor | None,  # (L,)
        options: TokenOptions,
        memory_budget: MemoryBudget,
        impl: str,
    ) -> LinearInputs:
        """The arguments of a user's call; raises ValueError for what does not fit."""
        argument_checks.check_tensor("hidden", hidden)
        argument_checks.check_tensor("weight", weight)
        argument_checks.check_tensors(bias=bias)
        hidden, weight, bias = _cast(hidden, weight, bias)
        _, width = argument_checks.check_linear(hidden, weight, bias, labels)
        argument_checks.check_live_rows(live_rows, labels)
        argument_checks.check_budget(memory_budget)
        head = Head(weight, bias, options)
        impl = resolve_impl(impl, hidden)
        rows = (hidden.reshape(-1, width), head, labels.reshape(-1))
        return cls(*rows, live_rows, memory_budget, impl)

    @property
    def sizes(self) -> tuple[int, int, torch.dtype, torch.device]:
        """D, V, dtype and device, which decide how much memory a row takes."""
        weight = self.head.weight
        return weight.shape[1], weight.shape[0], weight.dtype, weight.device

    @property
    def head_needs_gradient(self) -> bool:
        """Whether the weight's or the bias's gradient will be asked for."""
        return _needs_gradient(self.head.weight, self.head.bias)


def _cast(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in one dtype: that of autocast, as ``F.linear`` has it, or else of ``hidden``.

    float64 stays, and is refused next to another dtype: it was chosen for its digits.
    """
    dtype = autocast_dtype(hidden.device) or hidden.dtype
    if hidden.dtype not in MIXED:
        return hidden, weight, bias
    hidden = hidden.to(dtype)
    if weight.dtype in MIXED:
        weight = weight.to(dtype)
    if bias is not None and bias.dtype in MIXED:
        bias = bias.to(dtype)
    return hidden, weight, bias


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


class RowSplit(NamedTuple):
    """How the operation treats rows, which it cannot find out for itself."""

    saved_rows: int  # rows that keep their scores for the backward
    unscaled: bool  # the forward makes the gradient of hidden states, but for a factor a row
    fused: bool  # no logits in memory, in a kernel that is slower where memory is not short
    product_rows: int  # rows that a product of gradients takes at once


def row_split(inputs: LinearInputs, rows: int) -> RowSplit:
    """How ``rows`` live rows are split, by the gradients and the memory that there will be."""
    weight, budget = inputs.head.weight, inputs.memory_budget
    if inputs.head_needs_gradient:
        kept = budgets.saved_rows(budget, rows, *inputs.sizes)
        return RowSplit(kept, False, False, budgets.product_rows(budget, rows, kept, *inputs.sizes))
    if _needs_gradient(inputs.hidden):
        together = budgets.product_rows(budget, rows, None, *inputs.sizes)
        return RowSplit(0, True, False, together)
    logits = budgets.chunk_bytes(len(weight), weight.device, weight.dtype)
    short = budget != "auto" and budget < logits
    return RowSplit(0, False, short and weight.dtype != torch.float64, 1)


def token_logprobs(inputs: LinearInputs) -> Tensor:  # (M,)
    """Log-probability of each label, and 0 where it is ignored."""
    head, labels = inputs.head, inputs.labels
    rows, count = inputs.live_rows, None
    if rows is None:
        rows, count = op.live_rows(labels, head.options.ignore_index)
        if can_read_values(labels):
            rows, count = rows[: int(count)], None
    split = row_split(inputs, rows.shape[0])
    logps, *_ = op.linear_token_logprobs(
        inputs.hidden,
        head.weight,
        head.bias,
        labels,
        rows,
        count,
        *split,
        *head.options.numbers,
        inputs.impl,
    )
    return logps
