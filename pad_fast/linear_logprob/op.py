"""torch.library contracts of the operations on hidden states and the output head, as :mod:`pad_fast.logprob.op` has those on logits.

What an operation cannot see for itself (how many rows keep scores, which gradients will be asked for) comes as plain arguments, so
that a fake knows every size. An output that is not needed has no rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from pad_fast import validation
from pad_fast.dispatch import resolve_impl
from pad_fast.linear_logprob import backward as linear_backward
from pad_fast.linear_logprob import head as head_module
from pad_fast.linear_logprob import torch_impl as linear_torch
from pad_fast.linear_logprob import triton_impl as linear_triton
from pad_fast.linear_logprob.backward import Gradients, Upstream
from pad_fast.linear_logprob.head import Head
from pad_fast.linear_logprob.memory_budget import chunk_rows, padded
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import TokenOptions, accumulator

# Rows that count.


@custom_op("pad_fast::live_rows", mutates_args=())
def live_rows(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(M,) -> the rows that count, then -1, (M,); and how many they are, () on the CPU. Waits for the device, once."""
    found = logits_torch.live_rows(labels, ignore_index)
    rows = found.new_full(labels.shape, -1)
    rows[: len(found)] = found
    return rows, torch.tensor(len(found))


@live_rows.register_fake
def _(labels, ignore_index):
    return torch.empty_like(labels, dtype=torch.int64), torch.empty(
        (), dtype=torch.int64, device="cpu"
    )


def _counted(rows: Tensor, count: Tensor | None) -> Tensor:
    return rows if count is None else rows[: int(count)]


# Log-probabilities.


@custom_op("pad_fast::linear_token_logprobs", mutates_args=())
def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rows: Tensor, count: Tensor | None, saved_rows: int,
    unscaled: bool, fused: bool, temperature: float, softcap: float, logit_scale: float, ignore_index: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(M, D), (V, D), (V,), (M,), (K,) -> log-probabilities (M,), and what the backward needs of the packed rows.

    That is peaks and totals (K,), the scores of the first rows (saved_rows, V and padding), and with ``unscaled`` each row's product of
    scores and weight (K, D), which is the gradient of its hidden states but for the upstream factor. ``rows`` are the rows that count;
    given ``count``, the first so many of them. ``fused``: no logits in memory; for nothing that will be differentiated.
    """
    validation.check_label_values(labels, weight.shape[0], ignore_index)
    if count is None:
        validation.check_live_values(rows, labels, ignore_index)
    implementation, index = resolve_impl(impl, hidden), _counted(rows, count)
    logps, peak, total, scores, dlive = _outputs(hidden, weight, labels, rows, saved_rows, unscaled)
    head = Head(weight, bias, TokenOptions(temperature, softcap, logit_scale, ignore_index))
    chunk = chunk_rows(len(weight), hidden.device)
    assert saved_rows % chunk == 0 or saved_rows >= len(index), (
        saved_rows,
        chunk,
    )  # a chunk keeps all of its rows or none
    with torch.autocast(hidden.device.type, enabled=False):
        live = head_module.pack(hidden, index, chunk)
        arguments = (live, labels[index], head, scores, dlive[: len(index)] if unscaled else None)
        if implementation == "triton":
            found = (
                linear_triton.fused_forward(*arguments[:3])
                if fused
                else linear_triton.forward(*arguments)
            )
        else:
            found = linear_torch.forward(*arguments)
    logps.zero_().index_copy_(0, index, found[0])
    for whole, part in ((peak, found[1]), (total, found[2])):
        whole[: len(index)] = part
    for whole in (
        peak,
        total,
        scores,
        dlive,
    ):  # what compares outputs, as torch.library.opcheck does, is not to see old memory
        whole[len(index) :] = 0
    scores[:, len(weight) :] = 0
    return logps, peak, total, scores, dlive


def _outputs(
    hidden: Tensor, weight: Tensor, labels: Tensor, rows: Tensor, saved_rows: int, unscaled: bool
) -> tuple[Tensor, ...]:
    row = hidden.new_empty(labels.shape, dtype=accumulator(hidden.dtype))
    peak = row.new_empty(rows.shape)
    scores = hidden.new_empty(saved_rows, padded(weight.shape[0]))
    return (
        row,
        peak,
        torch.empty_like(peak),
        scores,
        hidden.new_empty(rows.shape[0] if unscaled else 0, hidden.shape[1]),
    )


@linear_token_logprobs.register_fake
def _(hidden, weight, bias, labels, rows, count, saved_rows, unscaled, *_):
    return _outputs(hidden, weight, labels, rows, saved_rows, unscaled)


@custom_op("pad_fast::linear_token_logprobs_backward", mutates_args=())
def linear_token_logprobs_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rows: Tensor, count: Tensor | None,
    peak: Tensor, total: Tensor, scores: Tensor, need_hidden: bool, need_weight: bool, need_bias: bool, temperature: float,
    softcap: float, logit_scale: float, ignore_index: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(M,) upstream gradients -> those of hidden, weight and bias; one that is not needed has no rows."""
    head = Head(weight, bias, TokenOptions(temperature, softcap, logit_scale, ignore_index))
    triton, index = resolve_impl(impl, hidden) == "triton", _counted(rows, count)
    dhidden, dweight, dbias = _gradients(hidden, weight, need_hidden, need_weight, need_bias)
    into = Gradients(
        dhidden if need_hidden else None,
        dweight if need_weight else None,
        dbias if need_bias else None,
    )
    peak, total = peak[: len(index)], total[: len(index)]
    with torch.autocast(hidden.device.type, enabled=False):
        live = head_module.pack(hidden, index, 1)
        upstream = Upstream.of(grad[index], total, weight.dtype)
        again = linear_triton.tile_scores(head) if triton else linear_torch.tile_scores(head)
        linear_backward.backward(
            upstream, live, index, (labels[index], peak, total), head, scores, into, again, triton
        )
    return dhidden, dweight, dbias


def _gradients(hidden: Tensor, weight: Tensor, *needed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for the hidden rows, room for the rest: rows that are ignored are not written later, all else is."""
    need_hidden, need_weight, need_bias = needed
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
    scores,
    need_hidden,
    need_weight,
    need_bias,
    *_,
):
    return _gradients(hidden, weight, need_hidden, need_weight, need_bias)


@custom_op("pad_fast::scale_live_rows", mutates_args=())
def scale_live_rows(
    grad: Tensor, rows: Tensor, count: Tensor | None, total: Tensor, unscaled: Tensor
) -> Tensor:
    """(M,) upstream gradients, packed rows (K, D) -> the gradient of the hidden states (M, D), for a head that is frozen."""
    index = _counted(rows, count)
    dhidden = unscaled.new_zeros(len(grad), unscaled.shape[1])
    upstream = Upstream.of(grad[index], total[: len(index)], unscaled.dtype)
    for part in logits_torch.tiles(len(index), head_module.GPU_TILE_ROWS):
        dlive = linear_backward.scale_rows(upstream.grad[part], unscaled[part])
        dhidden.index_copy_(0, index[part], dlive.to(dhidden.dtype))
    return dhidden


@scale_live_rows.register_fake
def _(grad, rows, count, total, unscaled):
    return unscaled.new_empty(grad.shape[0], unscaled.shape[1])


def _save(ctx, inputs, output) -> None:
    """Of a frozen head nothing is needed any more: its weight may be freed and stay so."""
    hidden, weight, bias, labels, rows, count, _, ctx.unscaled, _, *ctx.options = inputs
    _, peak, total, scores, unscaled = output
    if ctx.unscaled:
        ctx.save_for_backward(rows, count, total, unscaled)
    else:
        ctx.save_for_backward(hidden, weight, bias, labels, rows, count, peak, total, scores)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or zeros in the shape of the scores


def _gradient(ctx, grad: Tensor | None, *_) -> Sequence[Tensor | None]:
    if grad is None:
        return (None,) * 14
    if ctx.unscaled:
        return scale_live_rows(grad, *ctx.saved_tensors), *(None,) * 13
    needed = ctx.needs_input_grad[:3]
    gradients = linear_token_logprobs_backward(grad, *ctx.saved_tensors, *needed, *ctx.options)
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), *(None,) * 11


linear_token_logprobs.register_autograd(_gradient, setup_context=_save)
