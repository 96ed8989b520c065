"""The operation that sums token log-probabilities over responses, as torch.library sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pad_fast.argument_checks import check_response_values
from pad_fast.custom_operation import custom_operation
from pad_fast.device import has_float64

# Log-probabilities are rounded to multiples of this step before they are added in float64. Every
# sum below 2^53 steps (8.4e6 nats) is then exact, so that neither the order of the tokens nor the
# rows between them change a bit of it. A step is 9.3e-10 nats.
STEP = 2.0**-30


@custom_operation("pad_fast::response_sums")
def response_sums(
    logps: Tensor,  # (R, T) or (M,)
    labels: Tensor,  # as logps
    response_ids: Tensor | None,  # (M,), -1 for a row of no response
    num_responses: int,
    ignore_index: int,
    mean: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:  # (R,) each
    """The sum or mean of each response's log-probabilities, and its number of live tokens.

    float32 sums are exact (see ``STEP``), and so the same in every implementation, on every device,
    padded or packed. float64 is added as it is, in the order of the implementation; on a GPU,
    PyTorch's order of packed rows varies from run to run.
    """
    if response_ids is not None:
        check_response_values(response_ids, num_responses)
    if impl == "triton":
        from pad_fast.kernels.logprob import launch

        return launch.sums(logps, labels, response_ids, num_responses, ignore_index, mean)
    wide = (
        logps
        if logps.dtype == torch.float64 or not has_float64(logps.device)
        else (logps.double() / STEP).round_() * STEP
    )
    sums = sum_by_response(wide, response_ids, num_responses).to(logps.dtype)
    lengths = sum_by_response((labels != ignore_index).long(), response_ids, num_responses)
    return sums / lengths.clamp(min=1) if mean else sums, lengths


def sum_by_response(values: Tensor, response_ids: Tensor | None, num_responses: int) -> Tensor:
    """The sums (R,) of padded values (R, T), or of packed ones (M,) with each row's response."""
    if response_ids is None:
        return values.sum(-1)
    places = response_ids.long().where(response_ids >= 0, num_responses)
    return values.new_zeros(num_responses + 1).index_add(0, places, values)[:-1].clone()


@response_sums.register_fake
def _(logps, labels, response_ids, num_responses, *_):
    return logps.new_empty(num_responses), labels.new_empty(num_responses, dtype=torch.int64)


def _save_for_backward(ctx, inputs, output) -> None:
    logps, _, response_ids, _, _, mean, _ = inputs
    ctx.others = (None,) * (len(inputs) - 1)  # inputs that have no gradient
    ctx.save_for_backward(response_ids, output[1] if mean else None)
    ctx.shape = logps.shape
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, _) -> Sequence[Tensor | None]:
    if grad is None:
        return None, *ctx.others
    response_ids, lengths = ctx.saved_tensors
    if lengths is not None:
        grad = grad / lengths.clamp(min=1)
    if response_ids is None:
        return grad.unsqueeze(-1).expand(ctx.shape), *ctx.others
    padded = torch.cat([grad, grad.new_zeros(1)])  # rows of no response take the last entry, 0
    return padded[response_ids.long().where(response_ids >= 0, -1)], *ctx.others


response_sums.register_autograd(_backward, setup_context=_save_for_backward)
