"""Token log-probabilities of hidden states times the output head, with Triton kernels.

A library's product of a chunk of rows with the whole head writes logits in float32. One kernel
turns them into log-probabilities and, where the backward will need it, into d log p / d z. Device
code is imported inside of the functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.linear_logprob.head import Head, gather_chunks, logits_of, times_weight
from pad_fast.linear_logprob.memory_budget import GPU_TILE_ROWS, WORKSPACE, rows_of_chunk
from pad_fast.linear_logprob.scores import Scores
from pad_fast.logprob.softmax import RowNumbers
from pad_fast.logprob.torch_impl import tiles


def forward(
    hidden: Tensor,
    places: Tensor,
    labels: Tensor,
    head: Head,
    scores: Scores,
    unscaled: Tensor | None,
    product_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`pad_fast.linear_logprob.torch_impl.forward`.

    The weight is multiplied with the scores of ``product_rows`` rows at once: the product of a
    chunk of 512 rows by 2,304 columns would keep a quarter of a GPU busy.
    """
    from pad_fast.kernels.linear_logprob import launch

    count, vocabulary = len(labels), len(head.weight)
    logp, peak, total = (hidden.new_empty(count, dtype=head.dtype) for _ in range(3))
    labels = labels.contiguous()
    chunk = rows_of_chunk(count, vocabulary, hidden.device, hidden.dtype)
    block, first = scores.unpadded(vocabulary), 0  # whose rows begin with row ``first``
    if unscaled is not None:
        block = Scores.empty(hidden, min(count, product_rows), vocabulary).unpadded(vocabulary)
    # A frozen head's block may be less than a chunk, of which it then takes one part after another.
    step = chunk if unscaled is None else min(chunk, max(1, len(block)))
    for rows in tiles(count, chunk):
        logits = logits_of(gather_chunks(hidden, places[rows], chunk), head)
        for part in tiles(rows.stop - rows.start, step):
            own = slice(rows.start + part.start, rows.start + part.stop)
            kept = None
            if own.start - first < len(block):
                kept = block[own.start - first : own.stop - first].tensors
            found = (logp[own], peak[own], total[own])
            launch.rows(logits[part], head.bias, labels[own], kept, found, head.options)
            ends = own.stop == count or step < chunk or own.stop - first == len(block)
            if unscaled is not None and ends:
                whole = block[: own.stop - first]
                found_rows = times_weight(whole.values, head).mul_(whole.row_scale.unsqueeze(1))
                unscaled[first : own.stop] = found_rows.to(unscaled.dtype)
                first = own.stop
                del found_rows
        del logits  # before the next product
    return logp, peak, total


def fused_forward(
    hidden: Tensor, places: Tensor, labels: Tensor, head: Head
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`forward` without gradients, in one kernel that keeps logits in registers.

    It is taken only where memory is short. On an H200 it took 6% more time than :func:`forward`:
    a product in Triton is slower than a library's, which costs more than the library's two passes
    over the logits.
    """
    from pad_fast.kernels.linear_logprob import launch

    logp, peak, total = (hidden.new_empty(len(labels), dtype=torch.float32) for _ in range(3))
    # A quarter of the workspace holds the gathered rows.
    row = max(1, hidden.shape[1] * hidden.element_size())
    step = max(GPU_TILE_ROWS, WORKSPACE // 4 // row // GPU_TILE_ROWS * GPU_TILE_ROWS)
    for rows in tiles(len(labels), step):
        gathered = hidden.index_select(0, places[rows])
        found = launch.score(gathered, head.weight, head.bias, labels[rows], head.options)
        logp[rows], peak[rows], total[rows] = found
    return logp, peak, total


def tile_logp_grad(
    u: Tensor, numbers: RowNumbers, columns: slice, head: Head, into: Tensor | None
) -> Tensor:
    """As :func:`pad_fast.linear_logprob.torch_impl.tile_logp_grad`, in the dtype of products."""
    from pad_fast.kernels.linear_logprob import launch

    found = torch.empty_like(u, dtype=head.factor_dtype) if into is None else into
    u = head.add_bias(u, columns)
    rows = (numbers.labels, numbers.peak, numbers.total, numbers.grad)
    launch.tile(u, *rows, columns.start, found, head.options)
    return found
