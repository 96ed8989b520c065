"""Token log-probabilities of hidden states times the output head: a library's product and a Triton kernel over its rows.

The product of a chunk of rows with the whole head is written in float32, and one kernel turns it into log-probabilities and, where
the backward will need them, scores. :mod:`pad_fast.linear_logprob.torch_impl` has the backward. Device code is imported inside of the bodies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast.linear_logprob.backward import TileScores
from pad_fast.linear_logprob.head import Head, times_weight
from pad_fast.linear_logprob.matmul import product
from pad_fast.linear_logprob.memory_budget import chunk_rows
from pad_fast.logprob.torch_impl import tiles


def forward(
    live: Tensor, labels: Tensor, head: Head, scores: Tensor, dlive: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`pad_fast.linear_logprob.torch_impl.forward`."""
    from pad_fast.kernels.linear_logprob import launch

    count, vocabulary = len(labels), len(head.weight)
    logp, peak, total = (live.new_empty(count, dtype=head.dtype) for _ in range(3))
    options = (head.options.temperature, head.options.softcap, head.options.logit_scale)
    labels = labels.contiguous()
    chunk = chunk_rows(vocabulary, live.device)
    for rows in tiles(count, chunk):
        logits = product(live[rows.start : rows.start + chunk], head.weight.T, head.dtype)[
            : rows.stop - rows.start
        ]
        block = None
        if dlive is not None or rows.start < len(scores):
            block = live.new_empty(logits.shape) if dlive is not None else scores[rows, :vocabulary]
        launch.rows(
            logits, head.bias, labels[rows], block, (logp[rows], peak[rows], total[rows]), *options
        )
        del logits
        if dlive is not None and block is not None:
            dlive[rows] = times_weight(block, head).to(dlive.dtype)
    return logp, peak, total


def fused_forward(live: Tensor, labels: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`forward` without scores, in one kernel that keeps logits in registers: for little memory.

    Neither this nor the hybrid was timed on a GPU yet. A library's product is the faster one as far as public figures for Triton's go
    (about 80% of its rate on sm_90), and its logits cost 2 passes over them; so this is taken where memory does not allow the other.
    """
    from pad_fast.kernels.linear_logprob import launch

    options = (head.options.temperature, head.options.softcap, head.options.logit_scale)
    return launch.score(live[: len(labels)], head.weight, head.bias, labels, *options)


def tile_scores(head: Head) -> TileScores:
    """As :func:`pad_fast.linear_logprob.torch_impl.tile_scores`, in the dtype of products."""
    from pad_fast.kernels.linear_logprob import launch

    options = (head.options.temperature, head.options.softcap, head.options.logit_scale)

    def scores(
        u: Tensor, labels: Tensor, peak: Tensor, total: Tensor, grad: Tensor, columns: slice
    ) -> Tensor:
        found = torch.empty_like(u, dtype=head.factor_dtype)
        launch.tile(
            head.add_bias(u, columns), labels, peak, total, grad, columns.start, found, *options
        )
        return found

    return scores
