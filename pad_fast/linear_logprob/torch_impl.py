"""Token log-probabilities of hidden states times the output head in PyTorch.

Every product has ``chunk_rows`` rows on a CPU, the last ones padded with zeros: the bits of a
library's product change with its number of rows, and so a row's result does not depend on its
batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.linear_logprob.head import Head, gather_chunks, times_weight
from pad_fast.linear_logprob.matmul import product, write_product
from pad_fast.linear_logprob.memory_budget import rows_of_chunk
from pad_fast.linear_logprob.scores import Scores
from pad_fast.logprob import softmax as softmax_module
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import (
    OnlineSoftmax,
    RowNumbers,
    transform,
    transform_backward,
)
from pad_fast.logprob.torch_impl import tiles


def forward(
    hidden: Tensor,  # (M, D)
    places: Tensor,  # (L,), of the rows to do
    labels: Tensor,  # (L,), theirs
    head: Head,
    scores: Scores,  # K, of the first K rows, written with a scale of 1
    unscaled: Tensor | None,  # (L, D), written with every row's scores times the weight
    product_rows: int,  # rows of that product; a chunk here
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, peaks and totals of live rows, (L,) each."""
    softmax = OnlineSoftmax(labels, head.dtype)
    chunk = rows_of_chunk(len(labels), len(head.weight), hidden.device, hidden.dtype)
    gathered = gather_chunks(hidden, places, chunk).to(head.factor_dtype)
    kept = len(labels) if unscaled is not None else min(len(scores), len(labels))
    for rows in tiles(kept, chunk):
        if unscaled is None:
            own = scores[rows].unpadded(len(head.weight))
            _keep(gathered, rows, head, softmax, own, chunk)
        else:
            block = hidden.new_empty(rows.stop - rows.start, len(head.weight))
            own = Scores(block, softmax.total.new_empty(len(block)))
            _keep(gathered, rows, head, softmax, own, chunk)
            products = times_weight(block, head).mul_(own.row_scale.unsqueeze(1))
            unscaled[rows] = products.to(unscaled.dtype)
            del block, own, products  # before the next chunk
    for columns, part in head.slices(logits_torch.TILE_COLUMNS) if kept < len(labels) else ():
        for rows in tiles(len(labels) - kept, chunk):
            rows = slice(rows.start + kept, rows.stop + kept)
            z = _logits(gathered, rows, part, columns, head, chunk)
            softmax.pick(rows, columns, z)
            softmax.add(rows, columns, z, z)
            del z  # before the next product
    return softmax.log_p(), softmax.peak, softmax.total


def tile_logp_grad(
    u: Tensor, numbers: RowNumbers, columns: slice, head: Head, into: Tensor | None
) -> Tensor:
    """g * d log p / d u of a tile u (L, v) of products, the bias not yet added.

    It is written to ``into`` if that is given.
    """
    z = transform(head.add_bias(u, columns), head.options)
    z.clamp_(max=numbers.peak.unsqueeze(1))  # computed again, it may exceed its peak by a rounding
    over = None if head.options.softcap else z  # whose slope is made from z
    gradient = softmax_module.logp_grad(z, numbers, columns.start, over)
    gradient = transform_backward(gradient, z, head.options)
    return gradient if into is None else into.copy_(gradient)


def _logits(
    gathered: Tensor,
    rows: slice,
    part: Tensor,
    columns: slice,
    head: Head,
    chunk: int,
    into: Tensor | None = None,
) -> Tensor:
    """z of a tile, from a product of a whole chunk of rows; in ``into`` if that has so many."""
    whole = gathered[rows.start : rows.start + chunk]
    if into is not None and len(into) == chunk:
        u = write_product(into, whole, part.T)
    else:
        u = product(whole, part.T, head.dtype)[: rows.stop - rows.start]
    return transform(head.add_bias(u, columns), head.options)


def _keep(
    gathered: Tensor, rows: slice, head: Head, softmax: OnlineSoftmax, scores: Scores, chunk: int
) -> None:
    """Take a chunk of rows into ``softmax``, and write its ``scores``.

    Where these are rounded, row_scale undoes it for the label, whose score is as large as all
    others of its row together.
    """
    options, block = head.options, scores.values
    if block.dtype != head.dtype:
        block = torch.empty_like(block, dtype=head.dtype)
    anchors = []
    for columns, part in head.slices(logits_torch.TILE_COLUMNS):
        target = block[:, columns]
        # From the product to exp(z - anchor), all is done where the gradient will be.
        z = _logits(gathered, rows, part, columns, head, chunk, target)
        if z is not target:
            z = target.copy_(z)
        slope = transform_backward(torch.ones_like(z), z, options) if options.softcap else None
        softmax.pick(rows, columns, z)
        anchors.append(softmax.add(rows, columns, z, z))
        if slope is not None:
            z.mul_(slope)
        del z, slope  # before the next product
    labels, peak, total = softmax.labels[rows], softmax.peak[rows], softmax.total[rows]
    own = softmax.picked[rows].unsqueeze(1)
    own = transform_backward(torch.ones_like(own), own, options)
    # Without a softcap the slope is one number; with one it is in the block already.
    scale = 1.0 if options.softcap else options.logit_scale / options.temperature
    parts = tiles(len(head.weight), logits_torch.TILE_COLUMNS)
    for columns, anchor in zip(parts, anchors, strict=True):
        block[:, columns].mul_(((anchor - peak).exp() * (-scale / total)).unsqueeze(1))
    places = labels.clamp(0, len(head.weight) - 1).unsqueeze(1)
    block.scatter_add_(1, places, own)
    if (broken := total.isnan()).any():
        block[broken] = 0
    scores.row_scale.fill_(1)
    if block is not scores.values:
        scores.values.copy_(block)
        own, stored = (x.gather(1, places)[:, 0].to(own.dtype) for x in (block, scores.values))
        scores.row_scale.copy_(torch.where(stored == 0, 1, own / stored))
