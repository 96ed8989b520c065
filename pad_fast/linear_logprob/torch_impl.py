"""Token log-probabilities of hidden states times the output head in PyTorch, and the backward of every device.

With u = h @ w + b, a row's *scores* are S = d log p[y] / d u = (onehot(y) - p) * slope, without the upstream gradient g. That is a
factor per row, so it never has to touch S: dH = g * (S @ W) and dW = S^T @ (g * H), two plain products for any g. Rows that kept
their scores need only those; the others are computed again, slice by slice of the vocabulary, each slice of the weight's gradient
finished in one go. A row whose numbers are NaN has scores of 0 and passes NaN on in g * H alone, so that a g of 0 silences it.

The rows of a product are always ``chunk_rows``, the last ones padded, since a library's bits change with that number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.linear_logprob.backward import TileScores
from pad_fast.linear_logprob.head import Head, times_weight
from pad_fast.linear_logprob.matmul import product
from pad_fast.linear_logprob.memory_budget import chunk_rows
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import (
    OnlineSoftmax,
    bend,
    scores_of,
    unbend,
)
from pad_fast.logprob.torch_impl import tiles

# Forward.


def forward(
    live: Tensor, labels: Tensor, head: Head, scores: Tensor, dlive: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed hidden states (.., D), labels (L,) -> log-probabilities, peaks and totals (L,).

    The first rows leave their scores in ``scores`` (K, V or more). With ``dlive`` (L, D), each row's S @ W is left there.
    """
    softmax = OnlineSoftmax(labels, head.dtype)
    live = live.to(head.factor_dtype)
    chunk = chunk_rows(len(head.weight), live.device)
    kept = len(labels) if dlive is not None else min(len(scores), len(labels))
    for rows in tiles(kept, chunk):
        if dlive is None:
            _keep(live, rows, head, softmax, scores[rows, : len(head.weight)])
        else:
            block = live.new_empty(
                rows.stop - rows.start, len(head.weight), dtype=head.weight.dtype
            )
            _keep(live, rows, head, softmax, block)
            dlive[rows] = times_weight(block, head).to(dlive.dtype)
    for columns, part in head.slices(logits_torch.TILE_COLUMNS) if kept < len(labels) else ():
        for rows in tiles(len(labels) - kept, chunk):
            rows = slice(rows.start + kept, rows.stop + kept)
            softmax.add(rows, columns, _z(live, rows, part, columns, head))
    return softmax.log_p(), softmax.peak, softmax.total


def _z(live: Tensor, rows: slice, part: Tensor, columns: slice, head: Head) -> Tensor:
    """z of a tile, from a product of a whole chunk of rows."""
    whole = slice(rows.start, rows.start + chunk_rows(len(head.weight), live.device))
    u = product(live[whole], part.T, head.dtype)[: rows.stop - rows.start]
    return bend(head.add_bias(u, columns), head.options)


def _keep(live: Tensor, rows: slice, head: Head, softmax: OnlineSoftmax, scores: Tensor) -> None:
    """Take a chunk of rows into ``softmax`` and leave its ``scores`` (L, V) in the input's dtype."""
    options, block = (
        head.options,
        scores if scores.dtype == head.dtype else torch.empty_like(scores, dtype=head.dtype),
    )
    anchors = []
    for columns, part in head.slices(logits_torch.TILE_COLUMNS):
        z = _z(live, rows, part, columns, head)
        slope = unbend(torch.ones_like(z), z, options) if options.softcap else None
        anchors.append(softmax.add(rows, columns, z))
        block[:, columns] = z if slope is None else z.mul_(slope)
        del z, slope  # before the next product
    labels, peak, total, own = (
        softmax.labels[rows],
        softmax.peak[rows],
        softmax.total[rows],
        softmax.picked[rows].unsqueeze(1),
    )
    own = unbend(torch.ones_like(own), own, options)
    scale = 1.0 if options.softcap else options.logit_scale / options.temperature
    for columns, anchor in zip(
        tiles(len(head.weight), logits_torch.TILE_COLUMNS), anchors, strict=True
    ):
        block[:, columns].mul_(((anchor - peak).exp() * (-scale / total)).unsqueeze(1))
    block.scatter_add_(1, labels.clamp(0, len(head.weight) - 1).unsqueeze(1), own)
    if (broken := total.isnan()).any():
        block[broken] = 0
    if block is not scores:
        scores.copy_(block)


def tile_scores(head: Head) -> TileScores:
    """g * S of a tile of products u (L, v), from the labels, peaks, totals and g (L,) of its rows, and its columns."""

    def scores(
        u: Tensor, labels: Tensor, peak: Tensor, total: Tensor, grad: Tensor, columns: slice
    ) -> Tensor:
        z = bend(head.add_bias(u, columns), head.options)
        return unbend(scores_of(z, peak, total, labels, grad, columns.start), z, head.options)

    return scores
