"""Rewards as functions of tensors: check the arguments, call the operation.

z = softcap * tanh(logit_scale * logits / softcap) are a model's logits as it defines them (Gemma-2 caps, Cohere scales), and
the log-probability of a label is log softmax(z / temperature)[label]. A reward is the mean of a response's token
log-probabilities (PAD, arXiv 2502.14272, section 3.1), in nats per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast import validation
from pad_fast.dispatch import resolve_impl
from pad_fast.linear_logprob import memory_budget as memory_budget_module
from pad_fast.linear_logprob import op as linear_op
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.logprob import op as logprob_op
from pad_fast.logprob import response_op

NORMALIZATIONS = ("mean", "sum")


def token_logprobs(
    logits: Tensor,  # (..., V)
    labels: Tensor,  # (...)
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    impl: str = "auto",
) -> Tensor:  # (...)
    """Log-probability of each label, in nats, without a softmax over the vocabulary in memory.

    Equals ``(softcap(logit_scale * logits) / temperature).log_softmax(-1).gather(-1, labels[..., None])[..., 0]``, and 0 where
    the label is ``ignore_index``; such rows are not read, so NaN there does no harm. Labels stand beside the logits that predict
    them: there is no shift.

    float16, bfloat16 and float32 logits give float32, float64 gives float64; sums are taken in the result's dtype and the gradient
    comes back in the dtype of the logits. ``impl`` is "auto", "torch" or "triton", see :mod:`pad_fast.dispatch`.

    With ``inplace_backward`` the gradient is written over the logits, which saves their size in memory: after the backward they
    hold the gradient. What else saved them for a backward of its own raises then, as after any change in place, and so does a
    second backward through this call; what was read of them before is not affected. Logits that overlap in memory, or that have
    no view as (-1, T, V), are refused.

    Raises ValueError for unfit shapes, dtypes or options, and on a CPU for a label outside 0..V-1. On a GPU such a label gives
    NaN, in the gradient too, and reads nothing; with ``PAD_FAST_CHECK_LABELS=1`` in the environment it fails an assertion on the
    device.

    Under torch.compile the options and the implementation are constants of the graph: another temperature compiles again, and with
    fullgraph=True the compiler refuses after ``torch._dynamo.config.recompile_limit`` of them, so scale the logits where it varies.
    With fullgraph=True what is raised here while the compiler traces comes as its own ``Unsupported``, which quotes the message;
    what is about values, such as labels out of range, stays a ValueError.
    """
    validation.check_logits(logits, labels)
    if inplace_backward:
        validation.check_inplace(logits)
    validation.check_token_options(temperature, softcap, logit_scale, ignore_index)
    impl = resolve_impl(impl, logits)  # here and once: forward and backward have to be of the same
    options = (
        float(temperature),
        float(softcap or 0.0),
        float(logit_scale),
        int(ignore_index),
        impl,
    )
    rows = labels.shape[-1] if labels.ndim else 1
    # Three dimensions, since a slice along T, such as logits[:, :-1], has no view in two and would be copied.
    responses = labels.shape[:-1].numel()
    logits, flat = (
        logits.reshape(responses, rows, logits.shape[-1]),
        labels.reshape(responses, rows),
    )
    logps, _, _ = logprob_op.token_logprobs(logits, flat, *options, inplace_backward)
    return logps.view(labels.shape)


def linear_token_logprobs(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    labels: Tensor,  # (...)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    live_rows: Tensor | None = None,  # (L,) int64
    memory_budget: MemoryBudget = "auto",
    impl: str = "auto",
) -> Tensor:  # (...)
    """:func:`token_logprobs` of ``hidden @ weight.T + bias``, whose logits never exist whole, forward or backward.

    The products are accumulated in float32 or wider and not rounded to the inputs' dtype before the softmax. Under autocast,
    hidden, weight and bias are cast as ``F.linear`` would cast them; gradients come back in each argument's own dtype.

    Only the rows whose label is not ``ignore_index`` are computed. ``live_rows`` are their places among the flattened labels,
    which a collator knows; without it they are found on the device, which waits for it once. The same hidden row and weight give
    the same bits whatever else is in the batch, and the weight's gradient has the same bits from run to run.

    ``memory_budget``, in bytes, is what forward and backward may take together beside arguments and gradients. It decides how many
    rows keep their scores, V numbers of the input's dtype each, for the backward: those cost 3 products of 2 * L * D * V
    operations, the others 4, with the same results but for rounding. "auto" is a 16th of a GPU's memory and 128 MiB on a CPU; 0 keeps
    nothing, and takes what it has to: up to 1 GiB on a GPU, on a CPU 6 MiB and the packed hidden states three times over in float32. A
    weight that needs no gradient costs 2 products and keeps nothing, whatever the budget. Where nothing is differentiated, a budget
    below one chunk's logits (512 MiB on a GPU) takes a kernel that never writes them, slower where memory is not short.

    The weight has to be whole: call this where a wrapper has gathered it, inside of the forward of the module that owns it, whose
    hooks gather it again before the backward (FSDP2, ZeRO-3). What is kept for the backward is ``weight`` itself, or its cast under
    autocast, never a view of either; of a weight that needs no gradient nothing is kept.

    Raises ValueError for unfit shapes, dtypes or options, for a weight that is empty, sharded or elsewhere, and on a CPU for a label
    outside 0..V-1 or ``live_rows`` that are not those with a label.
    """
    hidden, weight, bias = cast_as_linear(hidden, weight, bias)
    _, width = validation.check_linear(hidden, weight, bias, labels)
    validation.check_token_options(temperature, softcap, logit_scale, ignore_index)
    validation.check_live_rows(live_rows, labels)
    validation.check_budget(memory_budget)
    options = (
        float(temperature),
        float(softcap or 0.0),
        float(logit_scale),
        int(ignore_index),
        resolve_impl(impl, hidden),
    )
    flat_hidden, flat_labels = hidden.reshape(-1, width), labels.reshape(-1)
    rows, count = _live_rows(flat_labels, ignore_index) if live_rows is None else (live_rows, None)
    plan = _plan(flat_hidden, weight, bias, rows.shape[0], memory_budget)
    logps, *_ = linear_op.linear_token_logprobs(
        flat_hidden, weight, bias, flat_labels, rows, count, *plan, *options
    )
    return logps.view(labels.shape)


def _live_rows(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """As the operation gives them; cut to their number where that may be looked at."""
    rows, count = linear_op.live_rows(labels, ignore_index)
    return (rows, count) if torch.compiler.is_compiling() else (rows[: int(count)], None)


def _plan(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: int, memory_budget: MemoryBudget
) -> tuple[int, bool, bool]:
    """What the operation cannot see: rows that keep scores, whether only hidden needs a gradient, whether none does and memory is short."""
    need_hidden, need_head = (
        torch.is_grad_enabled()
        and any(tensor is not None and tensor.requires_grad for tensor in tensors)
        for tensors in ((hidden,), (weight, bias))
    )
    if need_head:
        return (
            memory_budget_module.saved_rows(
                memory_budget, rows, weight.shape[1], weight.shape[0], weight.dtype, weight.device
            ),
            False,
            False,
        )
    short = (
        memory_budget != "auto"
        and weight.dtype != torch.float64
        and memory_budget < memory_budget_module.chunk_bytes(weight.shape[0], weight.device)
    )
    return 0, need_hidden, short and not need_hidden


def cast_as_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, what ``F.linear`` would multiply."""
    device = hidden.device.type
    if (
        not torch.amp.is_autocast_available(device)
        or not torch.is_autocast_enabled(device)
        or hidden.dtype == torch.float64
    ):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def response_rewards(
    logits: Tensor,  # (R, T, V) or (M, V)
    labels: Tensor,  # (R, T) or (M,)
    *,
    normalize: str = "mean",
    response_ids: Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
    **token_options,
) -> Tensor:  # (R,)
    """Reward of each response, r(y|x) = 1/|y| * sum_t log pi(y_t | x, y_<t), in nats per token (PAD, section 3.1).

    Padded: one response a row. Packed: the rows of all responses in one dimension, ``response_ids`` naming the response of each
    row, -1 for none; without ``num_responses`` it is one more than the largest id, which waits for the device. Rows whose label is
    ``ignore_index`` are no part of |y|. ``normalize="sum"`` leaves the division out, and the reward is in nats. A response without
    tokens has reward 0: the best there is, so mask it in a loss. The same tokens give the same bits in any order, padded or
    packed among any others (not those of float64 logits, which are summed unrounded). On a GPU an id past the last response makes
    every reward NaN. ``token_options`` are those of :func:`token_logprobs`.
    """
    _check_rewards(labels, response_ids, num_responses, normalize)
    labels = _label_own_rows(labels, response_ids, ignore_index)
    logps = token_logprobs(logits, labels, ignore_index=ignore_index, **token_options)
    impl = token_options.get("impl", "auto")
    return _reduce(logps, labels, normalize, response_ids, num_responses, ignore_index, impl)


def linear_response_rewards(
    hidden: Tensor,  # (R, T, D) or (M, D)
    weight: Tensor,  # (V, D)
    labels: Tensor,  # (R, T) or (M,)
    *,
    normalize: str = "mean",
    response_ids: Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
    **token_options,
) -> Tensor:  # (R,)
    """:func:`response_rewards` from hidden states and the output head; ``token_options`` are those of :func:`linear_token_logprobs`.

    ``live_rows``, if given, leaves out the rows of no response too.
    """
    _check_rewards(labels, response_ids, num_responses, normalize)
    labels = _label_own_rows(labels, response_ids, ignore_index)
    logps = linear_token_logprobs(
        hidden, weight, labels, ignore_index=ignore_index, **token_options
    )
    impl = token_options.get("impl", "auto")
    return _reduce(logps, labels, normalize, response_ids, num_responses, ignore_index, impl)


def response_lengths(
    labels: Tensor,  # (R, T) or (M,)
    *,
    response_ids: Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
) -> Tensor:  # (R,) int64
    """Number of live tokens, |y|, of each response, padded or packed as for :func:`response_rewards`."""
    _check_rewards(labels, response_ids, num_responses, "mean")
    count = _count_responses(labels, response_ids, num_responses)
    return response_op.sum_by_response((labels != ignore_index).long(), response_ids, count)


def _check_rewards(
    labels: Tensor, response_ids: Tensor | None, num_responses: int | None, normalize: str
) -> None:
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    validation.check_responses(labels, response_ids, num_responses)


def _label_own_rows(labels: Tensor, response_ids: Tensor | None, ignore_index: int) -> Tensor:
    """Rows that belong to no response are not read."""
    return labels if response_ids is None else labels.masked_fill(response_ids < 0, ignore_index)


def _reduce(
    logps: Tensor,
    labels: Tensor,
    normalize: str,
    response_ids: Tensor | None,
    num_responses: int | None,
    ignore_index: int,
    impl: str,
) -> Tensor:
    count = _count_responses(labels, response_ids, num_responses)
    rewards, _ = response_op.response_sums(
        logps,
        labels,
        response_ids,
        count,
        ignore_index,
        normalize == "mean",
        resolve_impl(impl, logps),
    )
    return rewards


def _count_responses(labels: Tensor, response_ids: Tensor | None, num_responses: int | None) -> int:
    if response_ids is None:
        return labels.shape[0]
    if num_responses is not None:
        return num_responses
    return int(response_ids.max()) + 1 if response_ids.numel() else 0
