"""Rows in chunks of whole prompts, and gradients that grow from chunk to chunk.

A chunk holds all responses of its prompts, so that a loss of theirs and its gradient are known
before the next chunk begins. Hidden states, weight and bias then get their gradients at once, in 3
products, with the scores of one chunk in memory. Nothing here knows a loss:
:mod:`pad_fast.linear_loss` computes it between :meth:`ChunkedHead.forward` and
:meth:`ChunkedHead.backward`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pad_fast.linear_logprob import torch_impl, triton_impl
from pad_fast.linear_logprob.backward import KeptRows, add_weight_gradient, write_hidden_gradient
from pad_fast.linear_logprob.inputs import LinearInputs
from pad_fast.linear_logprob.matmul import SliceSum
from pad_fast.linear_logprob.scores import Scores
from pad_fast.linear_logprob.upstream import Upstream
from pad_fast.logprob.responses import Responses
from pad_fast.logprob.torch_impl import tiles


class Chunk(NamedTuple):
    """Some prompts and all of their live rows."""

    prompts: slice
    rows: Tensor  # (L,) places
    responses: Tensor  # (L,) the response of each row, counted from the chunk's first


class PromptRows(NamedTuple):
    """The live rows, sorted by prompt."""

    rows: Tensor  # (L,) places
    responses: Tensor  # (L,) the response of each row
    sizes: list[int]  # rows of each prompt
    per_prompt: int  # N

    @classmethod
    def of(cls, responses: Responses, per_prompt: int) -> PromptRows:
        """Sort the live rows, which waits for the device once for them and once for the sizes.

        Rows of a prompt may stand anywhere; their order is kept.
        """
        labels, ids = responses.labels, responses.ids
        if ids is None:
            count, tokens = labels.shape
            ids = torch.arange(count, device=labels.device).repeat_interleave(tokens)
        rows = (labels.reshape(-1) != responses.ignore_index).nonzero().squeeze(-1)
        own = ids.index_select(0, rows).long()
        prompts = own // per_prompt
        order = prompts.argsort(stable=True)
        # bincount would wait twice more, for the least and the largest prompt.
        sizes = prompts.new_zeros(responses.count // per_prompt)
        sizes.index_add_(0, prompts, torch.ones_like(prompts))
        return cls(rows[order], own[order], sizes.tolist(), per_prompt)

    @property
    def largest(self) -> int:
        """Rows of the prompt that has most of them."""
        return max(self.sizes, default=0)

    def chunks(self, most: int) -> Iterator[Chunk]:
        """As many prompts at a time as have ``most`` rows together, and at least one."""
        for prompts, rows in self._parts(most):
            own = self.responses[rows] - prompts.start * self.per_prompt
            yield Chunk(prompts, self.rows[rows], own)

    def count_chunks(self, most: int) -> int:
        """How many :meth:`chunks` there are."""
        return sum(1 for _ in self._parts(most))

    def _parts(self, most: int) -> Iterator[tuple[slice, slice]]:
        """The prompts of each chunk and their rows among the sorted ones."""
        first = start = stop = 0
        for prompt, size in enumerate(self.sizes):
            if stop > start and stop + size - start > most:
                yield slice(first, prompt), slice(start, stop)
                first, start = prompt, stop
            stop += size
        if first < len(self.sizes):
            yield slice(first, len(self.sizes)), slice(start, stop)


class ChunkRows(NamedTuple):
    """The rows of a chunk after the forward."""

    rows: Tensor  # (L,) places
    scores: Scores  # L
    logps: Tensor  # (L,)
    total: Tensor  # (L,)


class ChunkedHead:
    """Forward and backward of one chunk after another; the gradients add up.

    The first chunk writes those of weight and bias and the others add to them, in the accumulator's
    dtype. That is a matrix more for a 16-bit weight, which :func:`.memory_budget.rows_at_a_time`
    counts. Not for float16, where each chunk would have an :class:`Upstream` unit of its own.
    """

    def __init__(self, inputs: LinearInputs, needed: tuple[bool, bool, bool]):
        self.inputs, self.head = inputs, inputs.head
        need_hidden, need_weight, need_bias = needed
        weight, dtype = self.head.weight, self.head.dtype
        self.dhidden = (
            torch.zeros_like(inputs.hidden, memory_format=torch.contiguous_format)
            if need_hidden
            else None
        )
        self.dweight = weight.new_empty(weight.shape, dtype=dtype) if need_weight else None
        self.dbias = weight.new_empty(len(weight), dtype=dtype) if need_bias else None
        self.has_sums = False  # whether a chunk has written the two above

    def forward(self, rows: Tensor) -> ChunkRows:
        """The log-probabilities of the rows at these places."""
        hidden = self.inputs.hidden
        scores = Scores.empty(hidden, len(rows), len(self.head.weight))
        forward = triton_impl.forward if self.inputs.impl == "triton" else torch_impl.forward
        logps, _, total = forward(
            hidden, rows, self.inputs.labels[rows], self.head, scores, None, len(rows)
        )
        return ChunkRows(rows, scores, logps, total)

    def backward(self, chunk: ChunkRows, grad: Tensor) -> None:
        """Add the gradients of a chunk whose log-probabilities have the gradient ``grad`` (L,)."""
        head, rows = self.head, chunk.rows
        upstream = Upstream.of(grad, chunk.total, head.weight.dtype)
        kept = KeptRows.of(chunk.scores.unpadded(len(head.weight)), rows, upstream)
        if self.dhidden is not None:
            write_hidden_gradient(kept, head, self.dhidden, len(rows))
        factors = None
        if self.dweight is not None:
            factors = kept.upstream.times(self.inputs.hidden, rows, head.factor_dtype)
        for part in tiles(len(head.weight), head.tile_columns):
            sums = [self._sum(whole, part) for whole in (self.dweight, self.dbias)]
            add_weight_gradient(kept.scores[:, part], factors, kept.upstream.grad, *sums)
            for total in sums:
                if total is not None:
                    total.finish(None)
        self.has_sums = True

    def _sum(self, whole: Tensor | None, part: slice) -> SliceSum | None:
        """A slice of a gradient, to go on from if there has been a chunk."""
        if whole is None:
            return None
        target = whole[part]
        return SliceSum(target, self.head.dtype, target if self.has_sums else None)

    def gradients(self) -> list[Tensor]:
        """The needed gradients of hidden states, weight and bias, in the dtype of the arguments."""
        assert self.has_sums
        found = (self.dhidden, self.dweight, self.dbias)
        return [gradient.to(self.inputs.hidden.dtype) for gradient in found if gradient is not None]
