"""The operations on given logits, as torch.library sees them: schema, fake tensors and autograd.

A schema takes the four numbers of :class:`TokenOptions` and a resolved implementation, "torch" or
"triton", since forward and backward share numbers that only one of them can read. Each body turns
autocast off: the caller has cast already, and torch.compile sees one opaque operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pad_fast.argument_checks import check_label_values, check_no_overlap
from pad_fast.custom_operation import custom_operation
from pad_fast.device import WAITS, no_autocast
from pad_fast.logprob import torch_impl
from pad_fast.logprob.softmax import TokenOptions, accumulator


@custom_operation("pad_fast::token_logprobs", tags=WAITS)
def token_logprobs(
    logits: Tensor,  # (R, T, V)
    labels: Tensor,  # (R, T)
    temperature: float,
    softcap: float,
    logit_scale: float,
    ignore_index: int,
    impl: str,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, and the peaks and totals that the backward needs, (R, T) each.

    ``inplace`` concerns the backward alone: its gradient overwrites the logits.
    """
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    check_label_values(labels, logits.shape[2], ignore_index)
    if inplace:
        check_no_overlap(logits)
    if impl == "triton":
        from pad_fast.kernels.logprob import launch

        return launch.forward(logits, labels, options)
    with no_autocast(logits):
        return torch_impl.logits_forward(logits, labels, options)


@token_logprobs.register_fake
def _(logits, labels, temperature, softcap, logit_scale, ignore_index, impl, inplace):
    row = logits.new_empty(labels.shape, dtype=accumulator(logits.dtype))
    return row, torch.empty_like(row), torch.empty_like(row)


@custom_operation("pad_fast::token_logprobs_backward", tags=WAITS)
def token_logprobs_backward(
    grad: Tensor,  # (R, T), as the four rows below
    logits: Tensor,  # (R, T, V)
    labels: Tensor,
    peak: Tensor,
    total: Tensor,
    temperature: float,
    softcap: float,
    logit_scale: float,
    ignore_index: int,
    impl: str,
) -> Tensor:  # (R, T, V)
    """The gradient of the logits."""
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _write_gradient(grad, logits, labels, (peak, total), options, impl, dlogits)
    return dlogits


@token_logprobs_backward.register_fake
def _(grad, logits, *_):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@custom_operation("pad_fast::token_logprobs_backward_", mutates_args=("logits",), tags=WAITS)
def token_logprobs_backward_(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    peak: Tensor,
    total: Tensor,
    temperature: float,
    softcap: float,
    logit_scale: float,
    ignore_index: int,
    impl: str,
) -> None:
    """The gradient of the logits, written over them.

    They count as mutated, so that autograd refuses whatever else saved them.
    """
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    _write_gradient(grad, logits, labels, (peak, total), options, impl, logits)


def _write_gradient(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    softmax: tuple[Tensor, Tensor],  # peaks and totals
    options: TokenOptions,
    impl: str,
    dlogits: Tensor,  # written
) -> None:
    if impl == "triton":
        from pad_fast.kernels.logprob import launch

        launch.backward(grad, logits, labels, softmax, options, dlogits)
        return
    with no_autocast(logits):
        torch_impl.logits_backward(grad, logits, labels, *softmax, options, dlogits)


def _save_for_backward(ctx, inputs, output) -> None:
    logits, labels, *ctx.options, ctx.inplace = inputs
    ctx.others = (None,) * (len(inputs) - 1)  # inputs that have no gradient
    ctx.save_for_backward(logits, labels, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, *_) -> Sequence[Tensor | None]:
    logits, *rows = ctx.saved_tensors
    if grad is None:
        dlogits = None
    elif ctx.inplace:
        dlogits = logits.detach()
        token_logprobs_backward_(grad, dlogits, *rows, *ctx.options)
    else:
        dlogits = token_logprobs_backward(grad, logits, *rows, *ctx.options)
    return dlogits, *ctx.others


token_logprobs.register_autograd(_backward, setup_context=_save_for_backward)
