"""Attention in which the responses of a prompt share it, registered with transformers.

:func:`install` gives a model's config the name of this attention. Calls that carry a
:class:`~pad_fast.models.layout.RowLayout` come here; all others go to the attention that the model
had. The model's layers hand the layout through, and keep it for activation checkpointing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pad_fast.device import compiles_attention
from pad_fast.models.attention_inputs import AttentionInputs, read_inputs
from pad_fast.models.flex_attention import flex_attention
from pad_fast.models.layout import BLOCK, RowLayout
from pad_fast.models.tiled_attention import tiled_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "pad_fast_"
REPLACED = ("sdpa", "eager", "flex_attention")


@torch.compiler.disable  # nothing here can be compiled, and the compiler warns of the cache
def install(model: PreTrainedModel) -> None:
    """Let the model's attention understand layouts. Calling it again changes nothing.

    Calls without a layout stay as they are, and saved checkpoints do not show it.
    """
    config = model.config.get_text_config()
    own = config._attn_implementation
    if own in REPLACED:
        _register(own)
        config._attn_implementation = PREFIX + own


@contextmanager
def installed(model: PreTrainedModel, layout: str = "shared") -> Iterator[None]:
    """:func:`install` inside if ``layout`` is "shared", else the model's own attention.

    Some models compute otherwise where they do not know their attention's name: Falcon's ALiBi, and
    what a sparse attention leaves out. So the name is changed only where it has to be.

    Nothing inside may need a backward later: activation checkpointing would compute the forward
    again with the attention that the model has afterwards.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    if layout == "shared":
        install(model)
    else:
        config._attn_implementation = own_attention(model)
    try:
        yield
    finally:
        config._attn_implementation = before


def own_attention(model: PreTrainedModel) -> str:
    """The name of the attention that the model has without :func:`install`."""
    return str(model.config.get_text_config()._attn_implementation).removeprefix(PREFIX)


def takes_sequence_ends(model: PreTrainedModel) -> bool:
    """Whether the model's attention takes the ends of sequences, as flash-attn does."""
    return "flash" in own_attention(model)


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
        prefix_layout: RowLayout | None = None,
        **options,
    ) -> tuple[Tensor, Tensor | None]:
        if prefix_layout is None:
            found = ALL_ATTENTION_FUNCTIONS
            call = found[own] if own in found else _eager(module)
            return call(module, query, key, value, attention_mask, **options)
        return _attend(module, (query, key, value), prefix_layout, options), None

    ALL_ATTENTION_FUNCTIONS.register(PREFIX + own, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PREFIX + own, ALL_MASK_ATTENTION_FUNCTIONS[own])


def _eager(module: nn.Module) -> Callable:
    """``eager_attention_forward`` from the file that defines the module's class or a base class."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise NotImplementedError(f"{type(module).__name__} has no eager_attention_forward")


@torch.compiler.disable
def _attend(
    module: nn.Module,
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: RowLayout,
    options: Mapping[str, Any],
) -> Tensor:
    inputs = read_inputs(qkv, layout, options, training=module.training)
    layout.windows.add(inputs.window)
    return prefix_attention(inputs)


def prefix_attention(inputs: AttentionInputs) -> Tensor:
    """Compute the attention with the implementation for the inputs' device.

    A GPU takes FlexAttention. A CPU, float64 and dropout, which FlexAttention does not have, take
    tiles. A layout's own ``attention`` replaces both.

    Returns:
        (1, T, H, Dv).
    """
    implementation = inputs.layout.attention or (
        flex_attention if _takes_flex(inputs) else tiled_attention
    )
    return implementation(inputs)


def _takes_flex(inputs: AttentionInputs) -> bool:
    return (
        compiles_attention(inputs.query.device)
        and inputs.query.dtype != torch.float64
        and inputs.dropout == 0.0
        and inputs.layout.length % BLOCK == 0
    )
