"""The listwise loss from hidden states, whole prompt groups at a time: 3 products with the scores of one chunk in memory.

A chunk holds all responses of its prompts, so their rewards, losses and upstream gradients are known before the next one begins, and
the gradients of hidden states, weight and bias are made there, in the forward. The outer backward multiplies them by one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pad_fast.dispatch import resolve_impl
from pad_fast.linear_logprob import head as head_module
from pad_fast.linear_logprob import torch_impl as linear_torch
from pad_fast.linear_logprob import triton_impl as linear_triton
from pad_fast.linear_logprob.backward import Upstream, add_weight_gradient, scale_rows
from pad_fast.linear_logprob.head import GPU_COLUMNS, GPU_TILE_ROWS, Head, times_weight
from pad_fast.linear_logprob.memory_budget import chunk_rows, padded
from pad_fast.logprob import response_op
from pad_fast.logprob.softmax import TokenOptions
from pad_fast.logprob.torch_impl import TILE_COLUMNS, tiles

GroupLoss = Callable[
    [Tensor, slice], Tensor
]  # rewards (p, N) of a slice of the prompts -> their losses (p,), 0 for those without one


class Groups(NamedTuple):
    """Live rows in the order of their prompts."""

    rows: Tensor  # (L,) places
    responses: Tensor  # (L,) of each
    sizes: list[int]  # rows of each prompt
    per_prompt: int  # N

    @classmethod
    def of(
        cls, labels: Tensor, response_ids: Tensor, prompts: int, per_prompt: int, ignore_index: int
    ) -> Groups:
        """Waits for the device once for the rows and once for the sizes. Rows of a prompt may stand anywhere; their order is kept."""
        rows = ((labels != ignore_index) & (response_ids >= 0)).nonzero().squeeze(-1)
        responses = response_ids.index_select(0, rows).long()
        order = (responses // per_prompt).argsort(stable=True)
        sizes = torch.bincount(responses // per_prompt, minlength=prompts).tolist()
        return cls(rows[order], responses[order], sizes, per_prompt)

    def chunks(self, most: int) -> Iterator[tuple[slice, slice]]:
        """Prompts and their rows: as many prompts as have ``most`` rows together."""
        first = start = stop = 0
        for prompt, size in enumerate(self.sizes):
            if stop > start and stop + size - start > most:
                yield slice(first, prompt), slice(start, stop)
                first, start = prompt, stop
            stop += size
        if first < len(self.sizes):
            yield slice(first, len(self.sizes)), slice(start, stop)


class GroupWalk(torch.autograd.Function):
    """(sum of the prompts' losses, rewards (P, N)), with gradients made on the way. The rewards are for reading."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,  # (M, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        labels: Tensor,  # (M,)
        groups: Groups,
        most: int,  # rows of a chunk
        options: TokenOptions,
        impl: str,
        mean: bool,
        loss_of: GroupLoss,
    ) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[:3]
        walk = _Walk(hidden, Head(weight, bias, options), needed, resolve_impl(impl, hidden))
        rewards = hidden.new_zeros(len(groups.sizes), groups.per_prompt, dtype=walk.head.dtype)
        total = rewards.new_zeros(())
        with torch.autocast(hidden.device.type, enabled=False):
            for prompts, span in groups.chunks(most):
                total = total + walk.chunk(labels, groups, prompts, span, mean, loss_of, rewards)
        ctx.save_for_backward(*walk.finish())
        ctx.mark_non_differentiable(rewards)
        ctx.set_materialize_grads(False)
        return total, rewards

    @staticmethod
    def backward(ctx, grad: Tensor | None, _):
        gradients = iter(ctx.saved_tensors)
        needed = ctx.needs_input_grad[:3]
        if grad is None:
            return (None,) * 10
        # not in place: a second backward through retained tensors multiplies anew
        return *(
            (next(gradients) * grad).to(ctx.saved_tensors[0].dtype) if need else None
            for need in needed
        ), *(None,) * 7


class _Walk:
    """Gradients that grow from chunk to chunk: of weight and bias in the accumulator's dtype, which is no copy if that is theirs.

    Not in float16: chunks would each have an :class:`Upstream` unit of their own.
    """

    def __init__(self, hidden: Tensor, head: Head, needed: tuple[bool, ...], impl: str):
        self.hidden, self.head, self.impl = hidden, head, impl
        need_hidden, need_weight, need_bias = needed
        self.dhidden = (
            torch.zeros_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
        )
        self.dweight = (
            head.weight.new_zeros(head.weight.shape, dtype=head.dtype) if need_weight else None
        )
        self.dbias = (
            head.weight.new_zeros(len(head.weight), dtype=head.dtype) if need_bias else None
        )

    def chunk(
        self,
        labels: Tensor,
        groups: Groups,
        prompts: slice,
        span: slice,
        mean: bool,
        loss_of: GroupLoss,
        rewards: Tensor,
    ) -> Tensor:
        """Add a chunk's gradients, write its ``rewards``, and return the sum of its losses."""
        rows, count, each = groups.rows[span], prompts.stop - prompts.start, groups.per_prompt
        live = head_module.pack(
            self.hidden, rows, chunk_rows(len(self.head.weight), self.hidden.device)
        )
        scores = live.new_empty(len(rows), padded(len(self.head.weight)))
        forward = linear_triton.forward if self.impl == "triton" else linear_torch.forward
        logps, _, total = forward(live, labels[rows], self.head, scores, None)
        own = groups.responses[span] - prompts.start * each
        found, lengths = response_op.response_sums(
            logps, labels[rows], own, count * each, self.head.options.ignore_index, mean, self.impl
        )
        with torch.enable_grad():
            leaf = found.view(count, each).requires_grad_()
            loss = loss_of(leaf, prompts).sum()
            (grad,) = torch.autograd.grad(loss, leaf)
        rewards[prompts] = leaf.detach()
        per_row = (grad.flatten() / lengths.clamp(min=1) if mean else grad.flatten())[own]
        self._add(Upstream.of(per_row, total, self.head.weight.dtype), live, rows, scores)
        return loss.detach()

    def _add(self, upstream: Upstream, live: Tensor, rows: Tensor, scores: Tensor) -> None:
        columns = scores[:, : len(self.head.weight)]
        if self.dhidden is not None:
            for part in tiles(len(rows), GPU_TILE_ROWS):
                dlive = scale_rows(upstream.grad[part], times_weight(columns[part], self.head))
                self.dhidden.index_copy_(0, rows[part], dlive.to(self.dhidden.dtype))
        factors = (
            upstream.times(live[: len(rows)], self.head.factor_dtype)
            if self.dweight is not None
            else None
        )
        for part in tiles(len(self.head.weight), GPU_COLUMNS if live.is_cuda else TILE_COLUMNS):
            into = (None if whole is None else whole[part] for whole in (self.dweight, self.dbias))
            add_weight_gradient(columns[:, part], factors, upstream.grad, *into)

    def finish(self) -> list[Tensor]:
        """What is needed, in the dtypes of the arguments."""
        found = (self.dhidden, self.dweight, self.dbias)
        return [gradient.to(self.hidden.dtype) for gradient in found if gradient is not None]
