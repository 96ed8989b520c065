"""Attention over a packed row by PyTorch's FlexAttention, with a BlockMask made from the layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad_fast.device import compiles_attention, shared_memory
from pad_fast.models.attention_inputs import AttentionInputs
from pad_fast.models.flex_tiles import Options, tile_options
from pad_fast.models.layout import BLOCK, RowLayout

# All models of a process share one function's compilations. By default the compiler makes 8 and
# then silently calls the function uncompiled, which would hold T * T scores in memory.
COMPILER_OPTIONS: dict[str, Any] = {
    "recompile_limit": 256,
    "fail_on_recompile_limit_hit": True,
    # Otherwise the softcap would be a tensor on the CPU, which the GPU's kernel cannot read.
    "specialize_float": True,
}


def flex_attention(inputs: AttentionInputs) -> Tensor:
    """FlexAttention, which never holds T * T scores and skips blocks that nothing sees.

    Queries and keys are taken in the values' data type: under autocast a model's rotary embedding
    leaves them in float32, and not every PyTorch lets FlexAttention take several types.

    Returns:
        (1, T, H, Dv).
    """
    device, layout, window = inputs.query.device, inputs.layout, inputs.window
    mask = layout.cached(("flex", window, device), lambda: block_mask(layout, window, device))
    value, heads = inputs.value, inputs.query.shape[1]
    query, key = inputs.query.to(value.dtype), inputs.key.to(value.dtype)
    # Grouped key heads need a number of query heads that is a power of 2, as in transformers.
    if inputs.group_size > 1 and heads & (heads - 1):
        key, value = (x.repeat_interleave(inputs.group_size, 1) for x in (key, value))
    tiles = tile_options(max(query.shape[-1], value.shape[-1]), value.dtype, shared_memory(device))
    with torch._dynamo.config.patch(COMPILER_OPTIONS):
        out = _implementation(compiles_attention(device), tiles)(
            query,
            key,
            value,
            score_mod=_softcap(inputs.softcap),
            block_mask=mask,
            scale=inputs.scale,
            enable_gqa=heads != key.shape[1],
        )
    return out.transpose(1, 2)


@cache
def _implementation(compiled: bool, tiles: Options = ()) -> Callable:
    """PyTorch's FlexAttention, compiled once for all lengths and windows.

    Another number of heads, dtype or softcap is one more compilation, and so is a gradient or a
    window where there was none.

    Args:
        compiled: whether it is compiled.
        tiles: options of its kernels, as text, since numbers would become variables of the graph.
    """
    from torch.nn.attention import flex_attention as of_torch

    attend: Callable = of_torch.flex_attention

    def with_tiles(*inputs: Tensor, **options: Any) -> Any:
        numbers = {name: int(number) for name, number in tiles}
        return attend(*inputs, **options, kernel_options=numbers)

    function = with_tiles if tiles else attend
    return torch.compile(function, dynamic=True) if compiled else function


@cache
def _softcap(softcap: float | None) -> Callable | None:
    if softcap is None:
        return None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def block_mask(layout: RowLayout, window: int | None, device: torch.device) -> Any:
    """The BlockMask of a row, from the lengths of its segments and not from all T * T pairs.

    Blocks in which no pair is visible are left out. Blocks in which every pair is visible are not
    masked.
    """
    from torch.nn.attention.flex_attention import BlockMask

    places = _describe_tokens(layout)
    some, every = _visible_blocks(places, window)
    group, part, position = (torch.from_numpy(x).to(device) for x in places)
    # A tensor, since the compiler would make a constant of a number and compile for each window.
    oldest = None if window is None else position - (window - 1)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (q >= k) & (group[q] == group[k]) & ((part[k] == 0) | (part[q] == part[k]))
        return seen if oldest is None else seen & (position[k] >= oldest[q])

    (masked_counts, masked_indices), (full_counts, full_indices) = (
        [torch.from_numpy(x).to(device)[None, None] for x in _counts_and_indices(blocks)]
        for blocks in (some & ~every, every)
    )
    return BlockMask.from_kv_blocks(
        masked_counts,
        masked_indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(layout.length, layout.length),
    )


class _Places(NamedTuple):
    """Where each token of a row belongs; int32."""

    group: np.ndarray  # (T,) number of its segment
    part: np.ndarray  # (T,) 0 for the prompt, i + 1 for response i
    position: np.ndarray  # (T,) as if its response followed its prompt directly


def _describe_tokens(layout: RowLayout) -> _Places:
    group, part, position = np.zeros((3, layout.length), dtype=np.int32)
    for number, segment in enumerate(layout.segments_and_padding()):
        group[segment.start : segment.stop] = number
        position[segment.start : segment.start + segment.prompt] = np.arange(segment.prompt)
        for i, (start, stop) in enumerate(segment.spans()):
            part[start:stop] = i + 1
            position[start:stop] = segment.prompt + np.arange(stop - start)
    return _Places(group, part, position)


def _visible_blocks(places: _Places, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """For each block of queries and block of keys: may any pair be visible, and is every pair."""
    group, part, position = (x.reshape(-1, BLOCK) for x in places)
    first, last = group.min(1), group.max(1)
    first_part, last_part = part[:, 0], part[:, -1]
    oldest, newest = position.min(1), position.max(1)
    last_prompt = np.where(part == 0, group, -1).max(1)  # the last prompt with a token in the block
    one_part = (first == last) & (first_part == last_part)
    order = np.arange(len(first))
    causal, before = order[:, None] >= order, order[:, None] > order
    # The block of keys reaches the part in which the block of queries begins, or one after it.
    reaches = (first[:, None] < last) | (
        (first[:, None] == last) & (first_part[:, None] <= last_part)
    )
    some = causal & (reaches | (last_prompt >= first[:, None]))
    every = before & (first[:, None] == last) & one_part & (first == last)[:, None]
    every &= (first_part == 0) | (one_part[:, None] & (first_part[:, None] == first_part))
    if window is not None:
        some &= oldest[:, None] - newest < window
        every &= newest[:, None] - oldest < window
    return some, every & some


def _counts_and_indices(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many blocks each row sets, and the row's block numbers with those that are set first."""
    counts, indices = blocks.sum(1), np.argsort(~blocks, axis=1, kind="stable")
    return counts.astype(np.int32), indices.astype(np.int32)
