"""Attention over packed rows in which the responses of a prompt share it: what a model's own attention is replaced by for such a row.

It is registered with transformers under a name that a model's config is given; calls without a layout go to the attention that the
model had. Layers hand the layout through to it, and keep it for what activation checkpointing computes again. A position sees those
of its own response, and of its prompt, that are not behind it; in layers with a sliding window, none that is a window or more away
by true position. On a GPU this is FlexAttention with a BlockMask, else tiles of queries, each with the keys that they can see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pad_fast.models.flex_attention import flex_attend
from pad_fast.models.layout import BLOCK, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel
from pad_fast.models.tiled_attention import _in_tiles

PREFIX = "pad_fast_"
REPLACED = ("sdpa", "eager", "flex_attention")


@torch.compiler.disable  # there is nothing to compile in it, and the compiler warns of its cache
def install(model: PreTrainedModel) -> None:
    """Let the model's attention understand layouts; idempotent. Its other calls stay as they are, and no checkpoint shows it."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    if own in REPLACED:
        _register(own)
        config._attn_implementation = PREFIX + own


@contextmanager
def installed(model: PreTrainedModel) -> Iterator[None]:
    """:func:`install`, undone on leaving: for forwards without a backward that could compute them again."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    install(model)
    try:
        yield
    finally:
        config._attn_implementation = before


def own_attention(model: PreTrainedModel) -> str:
    """The name of the attention that a model has of its own."""
    return str(model.config.get_text_config()._attn_implementation).removeprefix(PREFIX)


@cache
def _register(own: str) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        prefix_layout: Layout | None = None,
        **options,
    ) -> tuple[Tensor, Tensor | None]:
        if prefix_layout is None:
            call = (
                ALL_ATTENTION_FUNCTIONS[own] if own in ALL_ATTENTION_FUNCTIONS else _eager(module)
            )
            return call(module, query, key, value, attention_mask, **options)
        return prefix_attention(
            query, key, value, prefix_layout, training=module.training, **options
        ), None

    ALL_ATTENTION_FUNCTIONS.register(PREFIX + own, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PREFIX + own, ALL_MASK_ATTENTION_FUNCTIONS[own])


def _eager(module: nn.Module) -> Callable:
    """The ``eager_attention_forward`` of the file that a module's class, or one that it comes from, is written in."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise NotImplementedError(f"{type(module).__name__} has no eager_attention_forward")


@torch.compiler.disable
def prefix_attention(
    query: Tensor,  # (1, H, T, d)
    key: Tensor,  # (1, H of keys, T, d)
    value: Tensor,  # (1, H of keys, T, d of values)
    layout: Layout,
    *,
    training: bool = False,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unknown: Any,
) -> Tensor:  # (1, T, H, d of values)
    """softmax(scaling * q k^T, capped by softcap) v over what each token of the row sees.

    Raises NotImplementedError for what changes the softmax or the mask in other ways, such as attention sinks.
    """
    for name in ("s_aux", "sinks", "position_bias"):
        if unknown.get(name) is not None:
            raise NotImplementedError(f"its attention takes {name}")
    if unknown.get("is_causal") is False:
        raise NotImplementedError("its attention is not causal")
    layout.windows.add(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (
        query.is_cuda
        and query.dtype != torch.float64
        and dropout == 0.0
        and layout.length % BLOCK == 0
    ):
        return flex_attend(query, key, value, layout, scale, sliding_window, softcap).transpose(
            1, 2
        )
    return _in_tiles(
        query, key, value, layout, scale, dropout if training else 0.0, sliding_window, softcap
    )
