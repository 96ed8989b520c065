"""Compiling the kernels of a run's training while it samples."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from pad_fast import device as devices
from pad_fast.functional import linear_response_rewards
from pad_fast.linear_logprob.output_head import OutputHead
from pad_fast.models.auto import build_model
from pad_fast.models.output_head import read_head
from pad_fast.pipeline.run import RunContext
from pad_fast.training.batch_layout import head_budget
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import configured_loss, loss_columns
from pad_fast.warming import TOKENS, WIDTH, Call, WarmUp, compiles, lengths_for

logger = logging.getLogger("pad_fast")


def compile_ahead(run: RunContext) -> WarmUp:
    """Begin to compile what the training will launch, in a thread. No failure here ends the run.

    Where there is no GPU there is nothing to do. The head is read here and not in the thread, since
    transformers changes defaults of the process while it builds a model.
    """
    device = devices.default_device()
    if not compiles(run.training.impl, device):
        return WarmUp([], device, background=False)
    try:
        with torch.device("meta"):
            head = read_head(build_model(run.student(0).config))
    except Exception as error:  # by any architecture; a real problem is the training's to name
        logger.info("no kernels are compiled ahead, the student has no head to read: %s", error)
        return WarmUp([], device, background=False)
    frozen, number = run.config.use_peft, run.config.responses_per_prompt
    calls = training_calls(head, run.training, number, frozen=frozen, device=device)
    return WarmUp(calls, device, background=True)


def training_calls(
    head: OutputHead, args: PADConfig, responses: int, *, frozen: bool, device: torch.device
) -> list[Call]:
    """What a step computes from hidden states, on one prompt of zeros.

    Args:
        head: the student's, also without values.
        args: the training's arguments.
        responses: N.
        frozen: whether the head gets no gradient.
        device: where the training will run.

    Returns:
        Rewards without a gradient, rewards with one, and the loss of rewards.
    """

    def rewards(budget: Any, gradients: bool, tokens: int) -> Call:
        def call() -> None:
            with torch.set_grad_enabled(gradients):
                shape = (responses, tokens)
                found = _rewards(head, args, shape, budget, frozen, device)
            if gradients:
                found.sum().backward()

        return call

    def loss() -> None:
        shape = (1, responses)
        student, teacher = torch.zeros(2, *shape, dtype=torch.float32, device=device)
        mask = torch.ones(shape, dtype=torch.bool, device=device)
        every = {"anchor_rewards": teacher, "from_teacher": mask}
        columns = loss_columns(args, every)
        student.requires_grad_()
        configured_loss(args)(student, teacher, mask=mask, seed=0, **columns).sum().backward()

    # Rows that keep their gradient for the backward, and rows that are computed again.
    own = head_budget(args)
    budgets = [own, *([] if frozen else [0])]
    calls = [rewards(own, False, TOKENS)]
    for tokens in lengths_for(len(head.weight)):
        calls += [rewards(budget, True, tokens) for budget in budgets]
    return [*calls, loss]


def _rewards(
    head: OutputHead,
    args: PADConfig,
    shape: tuple[int, int],
    budget: Any,
    frozen: bool,
    device: torch.device,
) -> Tensor:
    """Rewards (N,) from hidden states that are all zeros, with a head like the given one."""
    vocabulary, own_width = head.weight.shape
    width = own_width if own_width % 16 or own_width < WIDTH else WIDTH
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else head.weight.dtype
    (responses, tokens) = shape
    count = responses * tokens
    count -= tokens == TOKENS and count % 2 == 0  # so that no power of two divides it

    def zeros(*shape: int, needs_gradient: bool) -> Tensor:
        made = torch.zeros(shape, dtype=dtype, device=device)
        return made.requires_grad_(needs_gradient)

    bias = None if head.bias is None else zeros(vocabulary, needs_gradient=not frozen)
    places = torch.arange(count, device=device)
    return linear_response_rewards(
        zeros(count, width, needs_gradient=True),
        zeros(vocabulary, width, needs_gradient=not frozen),
        torch.zeros_like(places),
        bias=bias,
        softcap=head.softcap,
        logit_scale=head.logit_scale,
        live_rows=places,
        response_ids=places // tokens,
        num_responses=responses,
        normalize=args.normalize,
        temperature=args.temperature,
        memory_budget=budget,
        impl=args.impl,
    )
