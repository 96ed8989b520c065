"""The torch.library contract of the sums of token log-probabilities over responses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from pad_fast.dispatch import resolve_impl
from pad_fast.validation import check_response_values

# Sums over responses.

# Log-probabilities are rounded to this grid before they are added in float64: then every sum below 2^53 steps (8.4e6 nats) is
# exact, so that neither the order of the tokens nor what lies between them changes a bit of it. A step is 9.3e-10 nats.
STEP = 2.0**-30


@custom_op("pad_fast::response_sums", mutates_args=())
def response_sums(
    logps: Tensor,
    labels: Tensor,
    response_ids: Tensor | None,
    num_responses: int,
    ignore_index: int,
    mean: bool,
    impl: str,
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
    wide = (
        logps
        if logps.dtype == torch.float64 or logps.device.type == "mps"
        else (logps.double() / STEP).round_() * STEP
    )
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
