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

from pad_fast import chunked
from pad_fast.chunked import TokenOptions, accumulator
from pad_fast.dispatch import resolve_impl
from pad_fast.shapes import check_label_values, check_no_overlap, check_response_values


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _rows(like: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty log-probabilities, peaks max z and totals sum exp(z - peak) of the rows of ``labels``."""
    row = like.new_empty(labels.shape, dtype=accumulator(like.dtype))
    return row, torch.empty_like(row), torch.empty_like(row)


# From logits.


@custom_op("pad_fast::token_logprobs", mutates_args=())
def token_logprobs(
    logits: Tensor, labels: Tensor, temperature: float, softcap: float, logit_scale: float, ignore_index: int, impl: str, inplace: bool
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
        return chunked.logits_forward(logits, labels, options)


@token_logprobs.register_fake
def _(logits, labels, temperature, softcap, logit_scale, ignore_index, impl, inplace):
    return _rows(logits, labels)


def _write_gradient(grad: Tensor, logits: Tensor, labels: Tensor, peak: Tensor, total: Tensor, *rest, dlogits: Tensor) -> None:
    *values, impl = rest
    if resolve_impl(impl, logits) == "triton":
        from pad_fast.kernels.logprob import launch

        launch.backward(grad, logits, labels, peak, total, *values, dlogits)
        return
    with _no_autocast(logits):
        chunked.logits_backward(grad, logits, labels, peak, total, TokenOptions(*values), dlogits)


@custom_op("pad_fast::token_logprobs_backward", mutates_args=())
def token_logprobs_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, peak: Tensor, total: Tensor, temperature: float, softcap: float, logit_scale: float,
    ignore_index: int, impl: str,
) -> Tensor:  # fmt: skip
    """(R, T) upstream gradients -> gradients of the logits (R, T, V)."""
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _write_gradient(grad, logits, labels, peak, total, temperature, softcap, logit_scale, ignore_index, impl, dlogits=dlogits)
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
    _write_gradient(grad, logits, labels, peak, total, temperature, softcap, logit_scale, ignore_index, impl, dlogits=logits)


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


# Sums over responses.

# Log-probabilities are rounded to this grid before they are added in float64: then every sum below 2^53 steps (8.4e6 nats) is
# exact, so that neither the order of the tokens nor what lies between them changes a bit of it. A step is 9.3e-10 nats.
STEP = 2.0**-30


@custom_op("pad_fast::response_sums", mutates_args=())
def response_sums(
    logps: Tensor, labels: Tensor, response_ids: Tensor | None, num_responses: int, ignore_index: int, mean: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """(R, T), or (M,) with the response (M,) of each row, -1 for none -> the sum or mean (R,) of each response, and its live tokens.

    Exact for float32, see ``STEP``, and so the same for each implementation, device, padding and packing. For float64 the order of
    the additions is the implementation's; on a CUDA device PyTorch's own, of packed rows, varies from run to run.
    """
    implementation = resolve_impl(impl, logps)
    if response_ids is not None:
        check_response_values(response_ids, num_responses)
    if implementation == "triton":
        from pad_fast.kernels.logprob import launch

        return launch.sums(logps, labels, response_ids, num_responses, ignore_index, mean)
    wide = logps if logps.dtype == torch.float64 or logps.device.type == "mps" else (logps.double() / STEP).round_() * STEP
    sums = sum_by_response(wide, response_ids, num_responses).to(logps.dtype)
    lengths = sum_by_response((labels != ignore_index).long(), response_ids, num_responses)
    return sums / lengths.clamp(min=1) if mean else sums, lengths


def sum_by_response(values: Tensor, response_ids: Tensor | None, num_responses: int) -> Tensor:
    """(R, T), or (M,) with the response of each row -> (R,)."""
    if response_ids is None:
        return values.sum(-1)
    places = response_ids.long().where(response_ids >= 0, num_responses)
    return values.new_zeros(num_responses + 1).index_add(0, places, values)[:-1].clone()


@response_sums.register_fake
def _(logps, labels, response_ids, num_responses, *_):
    return logps.new_empty(num_responses), labels.new_empty(num_responses, dtype=torch.int64)


def _save_responses(ctx, inputs, output) -> None:
    logps, _, response_ids, _, _, mean, _ = inputs
    ctx.save_for_backward(response_ids, output[1] if mean else None)
    ctx.shape = logps.shape
    ctx.mark_non_differentiable(output[1])


def _sums_gradient(ctx, grad: Tensor, _) -> Sequence[Tensor | None]:
    response_ids, lengths = ctx.saved_tensors
    if lengths is not None:
        grad = grad / lengths.clamp(min=1)
    if response_ids is None:
        return grad.unsqueeze(-1).expand(ctx.shape), *(None,) * 6
    padded = torch.cat([grad, grad.new_zeros(1)])  # the last is taken by rows of no response
    return padded[response_ids.long().where(response_ids >= 0, -1)], *(None,) * 6


response_sums.register_autograd(_sums_gradient, setup_context=_save_responses)
