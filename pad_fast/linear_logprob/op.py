"""The operations on hidden states and the output head, as torch.library sees them.

A schema takes the four numbers of :class:`TokenOptions` and a resolved implementation, "torch" or
"triton". What an operation cannot find out inside of a compiled graph, such as how many rows keep
their scores and which gradients will be needed, comes as plain arguments, so that a fake tensor
knows its size. An output that is not needed has no rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pad_fast import argument_checks
from pad_fast.custom_operation import custom_operation
from pad_fast.device import WAITS, no_autocast
from pad_fast.linear_logprob import backward as linear_backward
from pad_fast.linear_logprob import torch_impl, triton_impl
from pad_fast.linear_logprob.backward import Gradients, HowToBackward, LiveRows
from pad_fast.linear_logprob.head import Head
from pad_fast.linear_logprob.memory_budget import GPU_TILE_ROWS, chunk_rows
from pad_fast.linear_logprob.scores import Scores
from pad_fast.linear_logprob.upstream import Upstream, scale_rows
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import TokenOptions, accumulator


@custom_operation("pad_fast::live_rows", tags=WAITS)
def live_rows(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The places (M,) of the rows whose label (M,) is not ignored, then -1, and their number.

    The number () is on the CPU: this waits for the device, once.
    """
    found = logits_torch.live_rows(labels, ignore_index)
    rows = found.new_full(labels.shape, -1)
    rows[: len(found)] = found
    return rows, torch.tensor(len(found))


@live_rows.register_fake
def _(labels, ignore_index):
    rows = torch.empty_like(labels, dtype=torch.int64)
    return rows, torch.empty((), dtype=torch.int64, device="cpu")


def _counted(rows: Tensor, count: Tensor | None) -> Tensor:
    return rows if count is None else rows[: int(count)]


@custom_operation("pad_fast::linear_token_logprobs", tags=WAITS)
def linear_token_logprobs(
    hidden: Tensor,  # (M, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (M,)
    rows: Tensor,  # (K,), places of live rows
    count: Tensor | None,  # () on the CPU: only the first so many of them
    saved_rows: int,
    unscaled: bool,
    fused: bool,
    product_rows: int,
    temperature: float,
    softcap: float,
    logit_scale: float,
    ignore_index: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities (M,), and of the live rows what the backward needs.

    Returns:
        Log-probabilities (M,); peaks and totals (K,); the :class:`.Scores` of the first rows,
        values (saved_rows, V and padding) and their scale (saved_rows,); with ``unscaled`` each
        row's d log p / d logits times the weight (K, D), which is the gradient of its hidden state
        but for the upstream factor.

    ``fused`` writes no logits to memory, and is for what will not be differentiated. A product of
    gradients, here or in the backward, takes ``product_rows`` rows at once.
    """
    argument_checks.check_label_values(labels, weight.shape[0], ignore_index)
    if count is None:
        argument_checks.check_live_values(rows, labels, ignore_index)
    index = _counted(rows, count)
    logps, peak, total, *kept, dhidden = _outputs(
        hidden, weight, labels, rows, saved_rows, unscaled
    )
    scores = Scores(*kept)
    head = Head(weight, bias, TokenOptions(temperature, softcap, logit_scale, ignore_index))
    chunk = chunk_rows(len(weight), hidden.device, weight.dtype)
    # A chunk keeps all of its rows or none.
    assert saved_rows % chunk == 0 or saved_rows >= len(index), (saved_rows, chunk)
    with no_autocast(hidden):
        own = (hidden, index, labels[index], head)
        if fused and impl == "triton":
            found = triton_impl.fused_forward(*own)
        else:
            forward = triton_impl.forward if impl == "triton" else torch_impl.forward
            products = dhidden[: len(index)] if unscaled else None
            found = forward(*own, scores, products, product_rows)
    logps.zero_().index_copy_(0, index, found[0])
    for whole, part in ((peak, found[1]), (total, found[2])):
        whole[: len(index)] = part
    # Who compares outputs, as torch.library.opcheck does, must not see old memory.
    for whole in (peak, total, *scores.tensors, dhidden):
        whole[len(index) :] = 0
    scores.values[:, len(weight) :] = 0
    return logps, peak, total, *scores.tensors, dhidden


def _outputs(
    hidden: Tensor, weight: Tensor, labels: Tensor, rows: Tensor, saved_rows: int, unscaled: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    logps = hidden.new_empty(labels.shape, dtype=accumulator(hidden.dtype))
    peak = logps.new_empty(rows.shape)
    scores = Scores.empty(hidden, saved_rows, weight.shape[0])
    dhidden = hidden.new_empty(rows.shape[0] if unscaled else 0, hidden.shape[1])
    return logps, peak, torch.empty_like(peak), *scores.tensors, dhidden


@linear_token_logprobs.register_fake
def _(hidden, weight, bias, labels, rows, count, saved_rows, unscaled, *_):
    return _outputs(hidden, weight, labels, rows, saved_rows, unscaled)


@custom_operation("pad_fast::linear_token_logprobs_backward", tags=WAITS)
def linear_token_logprobs_backward(
    grad: Tensor,  # (M,)
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: Tensor,
    count: Tensor | None,
    peak: Tensor,
    total: Tensor,
    values: Tensor,
    row_scale: Tensor,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    product_rows: int,
    temperature: float,
    softcap: float,
    logit_scale: float,
    ignore_index: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden states, weight and bias; one that is not needed has no rows."""
    head = Head(weight, bias, TokenOptions(temperature, softcap, logit_scale, ignore_index))
    index, needed = _counted(rows, count), (need_hidden, need_weight, need_bias)
    gradients = _gradients(hidden, weight, *needed)
    into = Gradients(
        *(found if need else None for found, need in zip(gradients, needed, strict=True))
    )
    peak, total = peak[: len(index)], total[: len(index)]
    triton = impl == "triton"
    tile_logp_grad = triton_impl.tile_logp_grad if triton else torch_impl.tile_logp_grad
    with no_autocast(hidden):
        upstream = Upstream.of(grad[index], total, weight.dtype)
        live = LiveRows(hidden, index, labels[index], peak, total, upstream)
        how = HowToBackward(tile_logp_grad, triton, product_rows)
        linear_backward.backward(live, head, Scores(values, row_scale), into, how)
    return gradients


def _gradients(
    hidden: Tensor, weight: Tensor, need_hidden: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for hidden states, since ignored rows are not written; all of the rest is."""
    return (
        hidden.new_zeros(hidden.shape[0] if need_hidden else 0, hidden.shape[1]),
        weight.new_empty(weight.shape[0] if need_weight else 0, weight.shape[1]),
        weight.new_empty(weight.shape[0] if need_bias else 0),
    )


@linear_token_logprobs_backward.register_fake
def _(
    grad,
    hidden,
    weight,
    bias,
    labels,
    rows,
    count,
    peak,
    total,
    values,
    row_scale,
    need_hidden,
    need_weight,
    need_bias,
    *_,
):
    return _gradients(hidden, weight, need_hidden, need_weight, need_bias)


@custom_operation("pad_fast::scale_live_rows", tags=WAITS)
def scale_live_rows(
    grad: Tensor,  # (M,)
    rows: Tensor,  # (K,)
    count: Tensor | None,
    total: Tensor,  # (K,)
    unscaled: Tensor,  # (K, D)
) -> Tensor:  # (M, D)
    """The gradient of the hidden states of a frozen head: live rows times upstream gradients."""
    index = _counted(rows, count)
    dhidden = unscaled.new_zeros(len(grad), unscaled.shape[1])
    upstream = Upstream.of(grad[index], total[: len(index)], unscaled.dtype)
    for part in logits_torch.tiles(len(index), GPU_TILE_ROWS):
        scaled = scale_rows(upstream.grad[part], unscaled[part])
        dhidden.index_copy_(0, index[part], scaled.to(dhidden.dtype))
    return dhidden


@scale_live_rows.register_fake
def _(grad, rows, count, total, unscaled):
    return unscaled.new_empty(grad.shape[0], unscaled.shape[1])


def _save_for_backward(ctx, inputs, output) -> None:
    hidden, weight, bias, labels, rows, count, _, ctx.unscaled, _, *ctx.options = inputs
    ctx.others = (None,) * (len(inputs) - 3)  # inputs that have no gradient
    _, peak, total, *scores, unscaled = output
    if ctx.unscaled:  # nothing of a frozen head is saved: its weight may be freed and stay so
        ctx.save_for_backward(rows, count, total, unscaled)
    else:
        ctx.save_for_backward(hidden, weight, bias, labels, rows, count, peak, total, *scores)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or zeros of the shape of scores would be made


def _backward(ctx, grad: Tensor | None, *_) -> Sequence[Tensor | None]:
    if grad is None:
        return (None, None, None, *ctx.others)
    if ctx.unscaled:
        return scale_live_rows(grad, *ctx.saved_tensors), None, None, *ctx.others
    needed = ctx.needs_input_grad[:3]
    gradients = linear_token_logprobs_backward(grad, *ctx.saved_tensors, *needed, *ctx.options)
    found = (g if need else None for g, need in zip(gradients, needed, strict=True))
    return *found, *ctx.others


linear_token_logprobs.register_autograd(_backward, setup_context=_save_for_backward)
