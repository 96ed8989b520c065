"""A packed row's attention by FlexAttention, with a BlockMask made from the row's lengths."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pad_fast.models.layout import BLOCK, Layout

# All models of a process share one function's compilations, of which the compiler makes 8 by default and then, without a word, calls
# the function as it is: that would hold T * T scores. A softcap that it does not take for a constant is read from a tensor of a CPU.
COMPILING: dict[str, Any] = {
    "recompile_limit": 256,
    "fail_on_recompile_limit_hit": True,
    "specialize_float": True,
}


def flex_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:  # (1, H, T, d of values)
    mask = layout.plan(
        ("flex", window, query.device), lambda: block_mask(layout, window, query.device)
    )
    if (groups := query.shape[1] // key.shape[1]) > 1 and query.shape[1] & (query.shape[1] - 1):
        key, value = (
            x.repeat_interleave(groups, 1) for x in (key, value)
        )  # as transformers does where H is no power of 2
    options = {"enable_gqa": query.shape[1] != key.shape[1]}
    with torch._dynamo.config.patch(COMPILING):
        return _flex(query.device.type)(
            query, key, value, score_mod=_cap(softcap), block_mask=mask, scale=scale, **options
        )


@cache
def _flex(device: str) -> Callable:
    """Compiled once for all lengths and windows: again for other heads, dtypes and softcaps, with and without a gradient, a window."""
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable = flex_attention
    return attend if device == "cpu" else torch.compile(attend, dynamic=True)


@cache
def _cap(softcap: float | None) -> Callable | None:
    if softcap is None:
        return None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def block_mask(layout: Layout, window: int | None, device: torch.device) -> Any:
    """The BlockMask of a row, from its lengths and not from T * T pairs: blocks where no pair can be seen are left out, and those
    where every pair is seen are not masked."""
    from torch.nn.attention.flex_attention import BlockMask

    group, part, position = _labels(layout)
    some, every = _blocks(group, part, position, window)
    groups, parts, positions = (torch.from_numpy(x).to(device) for x in (group, part, position))
    oldest = (
        None if window is None else positions - (window - 1)
    )  # a number that it captured would be compiled in

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (q >= k) & (groups[q] == groups[k]) & ((parts[k] == 0) | (parts[q] == parts[k]))
        return seen if oldest is None else seen & (positions[k] >= oldest[q])

    partly, wholly = (
        [torch.from_numpy(x).to(device)[None, None] for x in _ordered(blocks)]
        for blocks in (some & ~every, every)
    )
    return BlockMask.from_kv_blocks(
        partly[0],
        partly[1],
        wholly[0],
        wholly[1],
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(layout.length, layout.length),
    )


def _labels(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each token its group, its part of that (0: the prompt; 1, 2, ...: a response), and its position; int32."""
    group, part, position = np.zeros((3, layout.length), dtype=np.int32)
    for g, segment in enumerate(layout.whole()):
        group[segment.start : segment.stop] = g
        position[segment.start : segment.start + segment.prompt] = np.arange(segment.prompt)
        for i, (start, stop) in enumerate(segment.spans()):
            part[start:stop] = i + 1
            position[start:stop] = segment.prompt + np.arange(stop - start)
    return group, part, position


def _blocks(
    group: np.ndarray, part: np.ndarray, position: np.ndarray, window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, blocks) of queries and keys: may any pair be seen, and is every one."""
    shape = (-1, BLOCK)
    first, last = group.reshape(shape).min(1), group.reshape(shape).max(1)
    head, tail = part.reshape(shape)[:, 0], part.reshape(shape)[:, -1]
    low, high = position.reshape(shape).min(1), position.reshape(shape).max(1)
    prompts = (
        np.where(part == 0, group, -1).reshape(shape).max(1)
    )  # the last group with a token of its prompt in the block
    alone = (first == last) & (head == tail)  # one part of one group
    order = np.arange(len(first))
    causal, before = order[:, None] >= order, order[:, None] > order
    same = (first[:, None] < last) | (
        (first[:, None] == last) & (head[:, None] <= tail)
    )  # the key block ends no earlier than
    some = causal & (same | (prompts >= first[:, None]))  # the query block begins
    every = before & (first[:, None] == last) & alone & (first == last)[:, None]
    every &= (head == 0) | (alone[:, None] & (head[:, None] == head))
    if window is not None:
        some &= low[:, None] - high < window
        every &= high[:, None] - low < window
    return some, every & some


def _ordered(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of set blocks in each row, and all blocks of the row, those first; int32."""
    return blocks.sum(1).astype(np.int32), np.argsort(~blocks, axis=1, kind="stable").astype(
        np.int32
    )
