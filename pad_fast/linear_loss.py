"""The listwise loss from hidden states and the output head.

A call is checked once and becomes a :class:`Problem`. It is solved by steps, rewards and then the
loss, or by chunks, whole prompts one after another with their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pad_fast import argument_checks
from pad_fast.custom_operation import is_batched
from pad_fast.device import can_read_values, no_autocast
from pad_fast.linear_logprob import inputs as linear_inputs
from pad_fast.linear_logprob import memory_budget as budgets
from pad_fast.linear_logprob.inputs import LinearInputs
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.linear_logprob.output_head import OutputHead, weight_and_options
from pad_fast.linear_logprob.prompt_chunks import Chunk, ChunkedHead, PromptRows
from pad_fast.logprob import response_op
from pad_fast.loss_inputs import LossSettings, Preferences, PromptColumns


def linear_preference_loss(
    hidden: Tensor,  # (R, T, D) or (M, D)
    weight: Tensor | OutputHead,  # (V, D)
    labels: Tensor,  # (R, T) or (M,)
    teacher_rewards: Tensor,  # (P, N)
    *,
    bias: Tensor | None = None,  # (V,)
    response_ids: Tensor | None = None,  # (M,)
    mask: Tensor | None = None,  # (P, N) bool
    live_rows: Tensor | None = None,  # (L,) int64
    memory_budget: MemoryBudget = "auto",
    anchor_rewards: Tensor | None = None,  # (P, N)
    from_teacher: Tensor | None = None,  # (P, N) bool
    read_as: Tensor | None = None,  # (P, N) int64
    **options: Any,
) -> tuple[Tensor, Tensor]:  # () or, with reduction="none", (P,); (P, N)
    """The listwise loss of a student's hidden states, and the rewards that it compares.

    It computes the same as::

        rewards = linear_response_rewards(hidden, weight, labels).view(P, N)
        loss = probabilistic_preference_loss(rewards, teacher_rewards)

    Args:
        hidden, weight, labels, bias, response_ids: as in :func:`linear_response_rewards`, with
            R = P * N responses prompt by prompt.
        teacher_rewards: (P, N), in nats per token.
        mask: (P, N), True for live responses; one without tokens is never live.
        live_rows, memory_budget: as in :func:`linear_token_logprobs`.
        anchor_rewards, from_teacher: (P, N), as in :func:`pad_fast.losses.preference_loss`.
        read_as: (P, N), numbers in ``labels``, where equal ones stand once.
        options: those of :class:`PADLoss`.

    Returns:
        The loss, in nats, and the rewards (P, N), detached.

    Raises:
        ValueError: R is not P * N; an unknown option; as the two functions above.

    Example:
        >>> import torch
        >>> hidden, weight, labels = torch.ones(2, 3, 4), torch.zeros(8, 4), torch.ones(2, 3).long()
        >>> linear_preference_loss(hidden, weight, labels, torch.tensor([[0.0, 1.0]]), loss="vpd")
        (tensor(0.6931), tensor([[-2.0794, -2.0794]]))

    Notes:
        A budget without room for all logits takes whole prompts in chunks, gradients included, in 3
        matrix products, if it holds the largest prompt beside a 16-bit weight's gradient in
        float32. ``retain_graph=True`` copies the gradients beyond it.
    """
    argument_checks.check_tensor("hidden", hidden)
    weight, bias, options = weight_and_options(weight, bias, options)
    settings = LossSettings.checked(**options)
    columns = PromptColumns(teacher_rewards, mask, anchor_rewards, from_teacher, read_as)
    preferences = Preferences.checked(settings, labels, columns, response_ids)
    inputs = LinearInputs.checked(
        settings.align(hidden),
        weight,
        preferences.responses.labels,
        bias,
        live_rows,
        settings.tokens,
        memory_budget,
        settings.impl,
    )
    problem = Problem(inputs, preferences)
    if may_take_chunks(problem):
        rows = PromptRows.of(preferences.responses, teacher_rewards.shape[1])
        if fits_in_chunks(problem, rows):
            return by_chunks(problem, rows)
    return by_steps(problem)


@dataclass(frozen=True)
class Problem:
    """A linear loss to be computed: everything that it depends on, checked."""

    inputs: LinearInputs
    preferences: Preferences

    @property
    def rows_at_a_time(self) -> int:
        """How many rows a chunk of prompts may have."""
        rows = len(self.inputs.labels)
        return budgets.rows_at_a_time(self.inputs.memory_budget, rows, *self.inputs.sizes)

    def done_again(self, rows: int) -> int:
        """Of so many rows, those for whose scores the budget has no room, if steps are taken."""
        return rows - budgets.saved_rows(self.inputs.memory_budget, rows, *self.inputs.sizes)


def may_take_chunks(problem: Problem) -> bool:
    """Whether a solution by chunks is possible and can be worth it, before any value is looked at.

    It makes gradients in the forward, for one outer gradient: no reduction="none", no sampled
    rankings, no torch.compile. Responses that are read once for equal ones take steps. Without a
    gradient of the head, 2 products do. In float16 the loss scale would come too late. The
    sizes of prompts are one more wait for the device.
    """
    inputs, room = problem.inputs, problem.rows_at_a_time
    _, vocabulary, dtype, device = inputs.sizes
    return (
        problem.preferences.settings.is_separable(problem.preferences.teacher.shape[1])
        and problem.preferences.given.read_as is None
        and room >= budgets.chunk_rows(vocabulary, device, dtype)
        and problem.done_again(len(inputs.labels)) > 0
        and can_read_values(inputs.labels)
        and inputs.head_needs_gradient
        and inputs.head.weight.dtype != torch.float16
    )


def fits_in_chunks(problem: Problem, rows: PromptRows) -> bool:
    """Whether there is room for the largest prompt, and steps would take more time.

    They do some rows again. Each chunk reads and writes the whole gradient of the weight.
    """
    room = problem.rows_at_a_time
    if rows.largest > room:
        return False
    _, _, dtype, device = problem.inputs.sizes
    passes = rows.count_chunks(room) * budgets.pass_rows(dtype, device)
    return problem.done_again(len(rows.rows)) > passes


def by_steps(problem: Problem) -> tuple[Tensor, Tensor]:
    """The loss and the rewards (P, N): log-probabilities, their rewards, and the rewards' loss."""
    labels = problem.preferences.responses.labels
    logps = linear_inputs.token_logprobs(problem.inputs).view(labels.shape)
    return problem.preferences.loss(logps, problem.inputs.impl)


def by_chunks(problem: Problem, rows: PromptRows) -> tuple[Tensor, Tensor]:
    """The loss and the rewards (P, N), whole prompts one chunk after another."""
    inputs, responses = problem.inputs, problem.preferences.responses
    head = inputs.head
    argument_checks.check_label_values(inputs.labels, len(head.weight), head.options.ignore_index)
    if responses.ids is not None:
        argument_checks.check_response_values(responses.ids, responses.count)
    total, rewards = _ByChunks.apply(inputs.hidden, head.weight, head.bias, problem, rows)
    return problem.preferences.reduce(total), rewards


class _ByChunks(torch.autograd.Function):
    """(Sum of the prompts' losses, rewards (P, N)), with gradients made in the forward.

    The first three arguments are those of the problem, for autograd to see.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        problem: Problem,
        rows: PromptRows,
    ) -> tuple[Tensor, Tensor]:
        head = ChunkedHead(problem.inputs, ctx.needs_input_grad[:3])
        shape = problem.preferences.teacher.shape
        rewards = hidden.new_zeros(shape, dtype=head.head.dtype)
        total = rewards.new_zeros(())
        with no_autocast(hidden):
            for chunk in rows.chunks(problem.rows_at_a_time):
                loss, rewards[chunk.prompts] = _solve_chunk(problem, chunk, head)
                total = total + loss
        ctx.save_for_backward(*head.gradients())
        ctx.mark_non_differentiable(rewards)
        ctx.set_materialize_grads(False)
        return total, rewards

    @staticmethod
    def backward(ctx, grad: Tensor | None, _):
        if grad is None:
            return (None,) * 5
        gradients = iter(ctx.saved_tensors)
        # A second backward of a kept graph multiplies the same gradients, as does each of a batch.
        times = Tensor.mul if _keeps_graph() or is_batched(grad) else Tensor.mul_
        scaled = (
            times(next(gradients), grad) if need else None for need in ctx.needs_input_grad[:3]
        )
        return *scaled, None, None


def _keeps_graph() -> bool:
    """Whether the backward that is running keeps its graph for another one (``retain_graph``)."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or asked()


def _solve_chunk(problem: Problem, chunk: Chunk, head: ChunkedHead) -> tuple[Tensor, Tensor]:
    """The sum of the losses of a chunk's prompts and their rewards (p, N); adds its gradients."""
    preferences, responses = problem.preferences, problem.preferences.responses
    shape = preferences.teacher[chunk.prompts].shape
    found = head.forward(chunk.rows)
    labels = problem.inputs.labels[chunk.rows]
    rewards, lengths = response_op.response_sums(
        found.logps,
        labels,
        chunk.responses,
        shape.numel(),
        responses.ignore_index,
        responses.mean,
        problem.inputs.impl,
    )
    with torch.enable_grad():
        leaf = rewards.view(shape).requires_grad_()
        loss = preferences.losses(leaf, chunk.prompts).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
    grad = grad.flatten()
    if responses.mean:
        grad = grad / lengths.clamp(min=1)
    head.backward(found, grad[chunk.responses])
    return loss.detach(), leaf.detach()
