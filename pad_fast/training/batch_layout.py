"""How the collator lays a batch out: what the model was found to take, in slices that the device is thought to hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn
from transformers import PreTrainedModel

from pad_fast.linear_logprob.memory_budget import SHARE, MemoryBudget
from pad_fast.models.causal_lm import causal_lm
from pad_fast.models.layout_trial import choose_layout, takes_one_row
from pad_fast.training.collator import PADCollator, live_group
from pad_fast.training.config import PADConfig

TRIED_ROWS = 64  # of the data, among which the two groups are found that the layouts are tried on
SPLIT = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


def choose_slices(
    collator: PADCollator,
    model: nn.Module,
    args: PADConfig,
    accelerator: Accelerator,
    rows: Sequence[Any],
) -> None:
    """Give a collator that has no layout the one that the model takes on the first of ``rows``, as rank 0 finds it; and its limit.

    Raises ValueError, on all ranks, where :func:`pad_fast.models.layout_trial.choose_layout` does.
    """
    lm = causal_lm(model)
    if collator.layout is None:
        found: list[Any] = [None]
        if args.process_index == 0:
            groups = [live_group(rows[i]) for i in range(min(TRIED_ROWS, len(rows)))]
            try:
                found = [
                    choose_layout(lm, groups, args.share_prefix, precision=accelerator.autocast)
                ]
            except ValueError as error:
                found = [error]
        if args.world_size > 1:
            broadcast_object_list(found)
        if isinstance(found[0], ValueError):
            raise found[0]
        collator.layout = found[0]
    collator.options = {"one_row": takes_one_row(lm), "bucketed": args.device.type != "cpu"}
    if collator.max_tokens is None:
        collator.max_tokens = args.max_tokens_per_step
    # one that holds a part of the model has more room than the estimate thinks
    if (
        collator.max_tokens is None
        and args.device.type == "cuda"
        and accelerator.distributed_type not in SPLIT
    ):
        width = 2 if args.bf16 or args.fp16 else lm.dtype.itemsize
        memory = torch.cuda.get_device_properties(args.device).total_memory
        options: dict[str, Any] = {
            "checkpointing": checkpoints_activations(args),
            "budget": head_budget(args),
        }
        collator.max_tokens = tokens_that_fit(lm, memory, width=width, **options)


def checkpoints_activations(args: PADConfig) -> bool:
    """Under its new name where transformers has that, then its old one."""
    return bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing)


def head_budget(args: PADConfig) -> MemoryBudget:
    """The output head's memory_budget, which the arguments hold as text."""
    return "auto" if args.memory_budget == "auto" else int(args.memory_budget)


def tokens_that_fit(
    model: PreTrainedModel,
    memory: int,
    *,
    width: int,
    checkpointing: bool,
    budget: MemoryBudget = "auto",
) -> int:
    """About the most tokens of one forward and backward on a GPU of ``memory`` bytes that holds the model, its gradients and AdamW's
    state beside them.

    ``width`` is the bytes of an activation. By count: a checkpoint a layer, or else what a layer keeps (some 16 hidden and 4
    intermediate states), two layers that are worked on, and float32 hidden rows for the head beside what it may keep of its scores,
    the ``budget``; a tenth of the memory is left alone. It depends on the device's size and not on what is free, so that a resumed run
    does as the first did.
    """
    config = model.config.get_text_config()
    hidden, inner = (
        config.hidden_size,
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
    )
    states = (
        28 if config.model_type.startswith("gemma") else 16
    )  # Gemma norms what enters a block and what leaves it
    layer = width * (states * hidden + 4 * inner)
    kept = config.num_hidden_layers * (width * hidden if checkpointing else layer)
    held = sum(
        p.numel() * (p.element_size() + (width if width < p.element_size() else 0))
        for p in model.parameters()
    )
    held += sum(p.numel() * 3 * p.element_size() for p in model.parameters() if p.requires_grad)
    held += 4 * hidden * config.vocab_size  # the gradient of the head while it is summed
    held += memory // SHARE if budget == "auto" else budget
    return max(1, int((0.9 * memory - held) / (kept + 2 * layer + 16 * hidden)))
