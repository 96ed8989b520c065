"""torch.library contracts of the operations: schema, fake and autograd. Device code is imported inside of the bodies.

Each body turns autocast off (what to cast was decided before) and picks the implementation, so that torch.compile sees one
opaque operation and asks neither the environment nor the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from pad_fast import chunked
from pad_fast.chunked import TokenOptions, accumulator
from pad_fast.dispatch import resolve_impl


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


# From logits.


@custom_op("pad_fast::token_logprobs", mutates_args=())
def token_logprobs(
    logits: Tensor, labels: Tensor, temperature: float, softcap: float, logit_scale: float, ignore_index: int, impl: str
) -> tuple[Tensor, Tensor]:
    """(R, T, V), (R, T) -> log-probabilities and log-sum-exps (R, T)."""
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    resolve_impl(impl, logits, has_kernel=False)
    with _no_autocast(logits):
        return chunked.logits_forward(logits, labels, options)


@token_logprobs.register_fake
def _(logits, labels, temperature, softcap, logit_scale, ignore_index, impl):
    row = logits.new_empty(labels.shape, dtype=accumulator(logits.dtype))
    return row, torch.empty_like(row)


@custom_op("pad_fast::token_logprobs_backward", mutates_args=())
def token_logprobs_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, temperature: float, softcap: float, logit_scale: float,
    ignore_index: int, impl: str,
) -> Tensor:  # fmt: skip
    """(R, T) upstream gradients -> gradients of the logits (R, T, V)."""
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    resolve_impl(impl, logits, has_kernel=False)
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    with _no_autocast(logits):
        chunked.logits_backward(grad, logits, labels, lse, options, dlogits)
    return dlogits


@token_logprobs_backward.register_fake
def _(grad, logits, *_):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_logits(ctx, inputs, output) -> None:
    logits, labels, *ctx.options = inputs
    ctx.save_for_backward(logits, labels, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _logits_gradient(ctx, grad: Tensor | None, _grad_lse: None) -> Sequence[Tensor | None]:
    logits, labels, lse = ctx.saved_tensors
    dlogits = None if grad is None else token_logprobs_backward(grad, logits, labels, lse, *ctx.options)
    return dlogits, None, None, None, None, None, None


token_logprobs.register_autograd(_logits_gradient, setup_context=_save_logits)


# From hidden states and the output head.


@custom_op("pad_fast::linear_token_logprobs", mutates_args=())
def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, temperature: float, softcap: float, logit_scale: float,
    ignore_index: int, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(M, D), (V, D), (V,), (M,) -> log-probabilities and log-sum-exps (M,)."""
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    resolve_impl(impl, hidden, has_kernel=False)
    with _no_autocast(hidden):
        return chunked.linear_forward(hidden, weight, bias, labels, options)


@linear_token_logprobs.register_fake
def _(hidden, weight, bias, labels, temperature, softcap, logit_scale, ignore_index, impl):
    row = hidden.new_empty(labels.shape, dtype=accumulator(hidden.dtype))
    return row, torch.empty_like(row)


@custom_op("pad_fast::linear_token_logprobs_backward", mutates_args=())
def linear_token_logprobs_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, lse: Tensor, need_hidden: bool,
    need_weight: bool, need_bias: bool, temperature: float, softcap: float, logit_scale: float, ignore_index: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(M,) upstream gradients -> those of hidden, weight and bias; one that is not needed is empty."""
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    resolve_impl(impl, hidden, has_kernel=False)
    dhidden, dweight, dbias = _linear_gradients(hidden, weight, need_hidden, need_weight, need_bias)
    with _no_autocast(hidden):
        chunked.linear_backward(
            grad, hidden, weight, bias, labels, lse, options,
            dhidden if need_hidden else None, dweight if need_weight else None, dbias if need_bias else None,
        )  # fmt: skip
    return dhidden, dweight, dbias


def _linear_gradients(hidden: Tensor, weight: Tensor, *needed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for the hidden rows, room for the rest: rows that are ignored are not written later, all else is."""
    vocabulary, width = weight.shape
    need_hidden, need_weight, need_bias = needed
    return (
        hidden.new_zeros((len(hidden), width) if need_hidden else 0),
        weight.new_empty((vocabulary, width) if need_weight else 0),
        weight.new_empty(vocabulary if need_bias else 0),
    )


@linear_token_logprobs_backward.register_fake
def _(grad, hidden, weight, bias, labels, lse, need_hidden, need_weight, need_bias, *_):
    return _linear_gradients(hidden, weight, need_hidden, need_weight, need_bias)


def _save_linear(ctx, inputs, output) -> None:
    hidden, weight, bias, labels, *ctx.options = inputs
    ctx.save_for_backward(hidden, weight, bias, labels, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _linear_gradient(ctx, grad: Tensor | None, _grad_lse: None) -> Sequence[Tensor | None]:
    if grad is None:
        return (None,) * 9
    needed = ctx.needs_input_grad[:3]
    gradients = linear_token_logprobs_backward(grad, *ctx.saved_tensors, *needed, *ctx.options)
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), *(None,) * 6


linear_token_logprobs.register_autograd(_linear_gradient, setup_context=_save_linear)
