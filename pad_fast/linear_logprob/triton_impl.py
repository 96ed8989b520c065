"""Token log-probabilities of hidden states times the output head, with Triton kernels.

A library's product of a chunk of rows with the whole head writes logits in float32. One kernel
turns them into log-probabilities and, where the backward will need it, into d log p / d z. Device
code is imported inside of the functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.linear_logprob.head import Head, times_weight
from pad_fast.linear_logprob.matmul import product
from pad_fast.linear_logprob.memory_budget import chunk_rows
from pad_fast.logprob.softmax import RowNumbers
from pad_fast.logprob.torch_impl import tiles


def forward(
    packed: Tensor, labels: Tensor, head: Head, logp_grad: Tensor, unscaled: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`pad_fast.linear_logprob.torch_impl.forward`."""
    from pad_fast.kernels.linear_logprob import launch

    count, vocabulary = len(labels), len(head.weight)
    logp, peak, total = (packed.new_empty(count, dtype=head.dtype) for _ in range(3))
    labels = labels.contiguous()
    chunk = chunk_rows(vocabulary, packed.device)
    for rows in tiles(count, chunk):
        whole = product(packed[rows.start : rows.start + chunk], head.weight.T, head.dtype)
        logits = whole[: rows.stop - rows.start]
        block = None
        if unscaled is not None:
            block = packed.new_empty(logits.shape)
        elif rows.start < len(logp_grad):
            block = logp_grad[rows, :vocabulary]
        found = (logp[rows], peak[rows], total[rows])
        launch.rows(logits, head.bias, labels[rows], block, found, head.options)
        del logits, whole  # before the next product
        if unscaled is not None and block is not None:
            unscaled[rows] = times_weight(block, head).to(unscaled.dtype)
    return logp, peak, total


def fused_forward(packed: Tensor, labels: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`forward` without gradients, in one kernel that keeps logits in registers.

    It is taken only where memory is short. Neither it nor :func:`forward` was timed on a GPU yet,
    but by public figures a product in Triton reaches about 80% of a library's rate on sm_90, which
    costs more than the library's two passes over the logits.
    """
    from pad_fast.kernels.linear_logprob import launch

    return launch.score(packed[: len(labels)], head.weight, head.bias, labels, head.options)


def tile_logp_grad(u: Tensor, numbers: RowNumbers, columns: slice, head: Head) -> Tensor:
    """As :func:`pad_fast.linear_logprob.torch_impl.tile_logp_grad`, in the dtype of products."""
    from pad_fast.kernels.linear_logprob import launch

    found = torch.empty_like(u, dtype=head.factor_dtype)
    u = head.add_bias(u, columns)
    rows = (numbers.labels, numbers.peak, numbers.total, numbers.grad)
    launch.tile(u, *rows, columns.start, found, head.options)
    return found
