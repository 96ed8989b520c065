"""How the collator lays out a batch: in a layout that the model takes, and in slices that fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn
from transformers import PreTrainedModel

from pad_fast import device
from pad_fast.linear_logprob.memory_budget import SHARE, MemoryBudget
from pad_fast.models.causal_lm import causal_lm, is_spread
from pad_fast.models.layout_trial import choose_layout, takes_one_row
from pad_fast.models.neighbour_effects import sides_of
from pad_fast.training.collator import PADCollator, Slicing, live_group
from pad_fast.training.config import PADConfig
from pad_fast.training.placement import placed

logger = logging.getLogger("pad_fast")

# The trial of the layouts takes two groups of several distinct responses from so many first rows.
TRIED_GROUPS, TRIED_ROWS = 2, 1024
SPLIT_MODELS = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


def sliced_for(
    collator: PADCollator,
    model: nn.Module,
    args: PADConfig,
    accelerator: Accelerator,
    rows: Sequence[Any],
) -> PADCollator:
    """A collator like the given one, with the layout and the limit of tokens for a model.

    Args:
        collator: what it was given is kept; the rest is chosen.
        model: the student; the layouts are tried on it, by rank 0.
        args: ``share_prefix`` and ``max_tokens_per_step``.
        accelerator: the trainer's.
        rows: prepared rows; the first of them are tried.

    Raises:
        ValueError: on all ranks, where :func:`pad_fast.models.layout_trial.choose_layout` does.
    """
    lm = causal_lm(model)
    slicing = Slicing(
        collator.layout or _tried_layout(lm, args, accelerator, rows),
        collator.max_tokens or args.max_tokens_per_step or _tokens_that_fit(lm, args, accelerator),
        sides_of(lm),
        one_row=takes_one_row(lm),
        bucketed=device.compiles_attention(args.device),
    )
    return collator.sliced(slicing)


def _tokens_that_fit(lm: PreTrainedModel, args: PADConfig, accelerator: Accelerator) -> int | None:
    """An estimate for the training's GPU; None where there is none or it holds a part only."""
    # A device that holds a part of the model has more room than the estimate knows of.
    holds_all = accelerator.distributed_type not in SPLIT_MODELS and not is_spread(lm)
    memory = device.total_memory(args.device)
    if memory is None or not holds_all:
        return None
    return tokens_that_fit(
        lm,
        memory,
        width=2 if args.bf16 or args.fp16 else lm.dtype.itemsize,
        checkpointing=checkpoints_activations(args),
        budget=head_budget(args),
    )


def _tried_layout(
    lm: PreTrainedModel, args: PADConfig, accelerator: Accelerator, rows: Sequence[Any]
) -> str:
    """The layout that rank 0 finds, on every rank; or its ValueError, on every rank."""
    found: list[Any] = [None]
    if args.process_index == 0:
        read = (live_group(rows[i]) for i in range(min(TRIED_ROWS, len(rows))))
        groups = list(islice((group for group in read if len(group.responses) > 1), TRIED_GROUPS))
        try:
            with placed(lm, args.device) as there:
                if not there:
                    logger.warning(
                        "%s does not fit on %s as a whole, so that its layout is chosen by its "
                        "config and not tried (share_prefix=false keeps to what needs no trial)",
                        type(lm).__name__,
                        args.device,
                    )
                layout = choose_layout(
                    lm,
                    groups,
                    args.share_prefix,
                    precision=accelerator.autocast,
                    impl=args.impl,
                    trial=there,
                )
            found = [layout]
        except ValueError as error:
            found = [error]
    if args.world_size > 1:
        broadcast_object_list(found)
    if isinstance(found[0], ValueError):
        raise found[0]
    return found[0]


def checkpoints_activations(args: PADConfig) -> bool:
    """Whether activations are recomputed, by the new name of that argument or by the old one."""
    return bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing)


def head_budget(args: PADConfig) -> MemoryBudget:
    """The output head's ``memory_budget``, which the arguments hold as text."""
    return "auto" if args.memory_budget == "auto" else int(args.memory_budget)


def tokens_that_fit(
    model: PreTrainedModel,
    memory: int,
    *,
    width: int,
    checkpointing: bool,
    budget: MemoryBudget = "auto",
) -> int:
    """An estimate of the most tokens that fit into one forward and backward on a GPU.

    The GPU also holds the model, its gradients and AdamW's state, and a tenth of it is left alone.

    Args:
        model: a causal language model.
        memory: bytes of the GPU: all, not those that are free, so that a resumed run decides alike.
        width: bytes of an activation.
        checkpointing: whether activations are recomputed.
        budget: ``memory_budget`` of the output head, in bytes.

    Returns:
        The number of tokens, at least 1.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    # States of the hidden size that a layer keeps. Gemma norms what enters a block and what leaves.
    states = 28 if config.model_type.startswith("gemma") else 16
    layer = width * (states * hidden + 4 * inner)
    kept = config.num_hidden_layers * (width * hidden if checkpointing else layer)
    held = sum(
        p.numel() * (p.element_size() + (width if width < p.element_size() else 0))
        for p in model.parameters()
    )
    held += sum(p.numel() * 3 * p.element_size() for p in model.parameters() if p.requires_grad)
    held += 4 * hidden * config.vocab_size  # the gradient of the head while it is summed
    held += memory // SHARE if budget == "auto" else budget
    # Two layers are worked on at a time, and the head has float32 hidden states.
    return max(1, int((0.9 * memory - held) / (kept + 2 * layer + 16 * hidden)))
