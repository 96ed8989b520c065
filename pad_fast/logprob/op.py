"""torch.library contracts of the operations: schema, fake and autograd. Device code is imported inside of the bodies.

Each body turns autocast off (what to cast was decided before), so that torch.compile sees one opaque operation. ``impl`` may be
"auto", but forward and backward share numbers of their implementation: who calls them resolves it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor
from torch.library import custom_op

from pad_fast.dispatch import resolve_impl
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import TokenOptions, accumulator
from pad_fast.validation import check_label_values, check_no_overlap


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _rows(like: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty log-probabilities, peaks max z and totals sum exp(z - peak) of the rows of ``labels``."""
    row = like.new_empty(labels.shape, dtype=accumulator(like.dtype))
    return row, torch.empty_like(row), torch.empty_like(row)


# From logits.


@custom_op("pad_fast::token_logprobs", mutates_args=())
def token_logprobs(
    logits: Tensor,
    labels: Tensor,
    temperature: float,
    softcap: float,
    logit_scale: float,
    ignore_index: int,
    impl: str,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(R, T, V), (R, T) -> log-probabilities, and what the backward needs of each row: peaks and totals, (R, T).

    ``inplace`` is the backward's business: the gradient overwrites the logits.
    """
    options = TokenOptions(temperature, softcap, logit_scale, ignore_index)
    implementation = resolve_impl(impl, logits)
    check_label_values(labels, logits.shape[2], ignore_index)
    if inplace:
        check_no_overlap(logits)
    if implementation == "triton":
        from pad_fast.kernels.logprob import launch

        return launch.forward(logits, labels, *astuple(options))
    with _no_autocast(logits):
        return logits_torch.logits_forward(logits, labels, options)


@token_logprobs.register_fake
def _(logits, labels, temperature, softcap, logit_scale, ignore_index, impl, inplace):
    return _rows(logits, labels)


def _write_gradient(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    peak: Tensor,
    total: Tensor,
    *rest,
    dlogits: Tensor,
) -> None:
    *values, impl = rest
    if resolve_impl(impl, logits) == "triton":
        from pad_fast.kernels.logprob import launch

        launch.backward(grad, logits, labels, peak, total, *values, dlogits)
        return
    with _no_autocast(logits):
        logits_torch.logits_backward(
            grad, logits, labels, peak, total, TokenOptions(*values), dlogits
        )


@custom_op("pad_fast::token_logprobs_backward", mutates_args=())
def token_logprobs_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, peak: Tensor, total: Tensor, temperature: float, softcap: float, logit_scale: float,
    ignore_index: int, impl: str,
) -> Tensor:  # fmt: skip
    """(R, T) upstream gradients -> gradients of the logits (R, T, V)."""
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _write_gradient(
        grad,
        logits,
        labels,
        peak,
        total,
        temperature,
        softcap,
        logit_scale,
        ignore_index,
        impl,
        dlogits=dlogits,
    )
    return dlogits


@token_logprobs_backward.register_fake
def _(grad, logits, *_):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@custom_op("pad_fast::token_logprobs_backward_", mutates_args=("logits",))
def token_logprobs_backward_(
    grad: Tensor, logits: Tensor, labels: Tensor, peak: Tensor, total: Tensor, temperature: float, softcap: float, logit_scale: float,
    ignore_index: int, impl: str,
) -> None:  # fmt: skip
    """The same, written over the logits. They count as mutated: autograd refuses whatever else saved them."""
    _write_gradient(
        grad,
        logits,
        labels,
        peak,
        total,
        temperature,
        softcap,
        logit_scale,
        ignore_index,
        impl,
        dlogits=logits,
    )


def _save_logits(ctx, inputs, output) -> None:
    logits, labels, *ctx.options, ctx.inplace = inputs
    ctx.save_for_backward(logits, labels, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _logits_gradient(ctx, grad: Tensor | None, *_) -> Sequence[Tensor | None]:
    logits, *rows = ctx.saved_tensors
    if grad is None:
        dlogits = None
    elif ctx.inplace:
        dlogits = logits.detach()
        token_logprobs_backward_(grad, dlogits, *rows, *ctx.options)
    else:
        dlogits = token_logprobs_backward(grad, logits, *rows, *ctx.options)
    return dlogits, *(None,) * 7


token_logprobs.register_autograd(_logits_gradient, setup_context=_save_logits)
