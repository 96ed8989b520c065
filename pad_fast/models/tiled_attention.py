"""Attention over a packed row in tiles, each computed by PyTorch's fused attention.

A tile is a stretch of queries of one sequence with the keys that they can see: a part of the prompt
and a part of their own response. Tiles of similar shapes are computed as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pad_fast.device import attends_to_grouped_keys
from pad_fast.models.attention_inputs import AttentionInputs
from pad_fast.models.layout import RowLayout

MOST_QUERIES = 512  # in a tile, so that few keys are loaded only to be masked
# A sequence at least this long is one causal tile, whose kernel skips what is masked.
LEAST_CAUSAL = 256
SMALL_TILE = 4096  # scores: tiles smaller than this share a batch whatever their shapes
MOST_SCORES = 1 << 23  # in a batch of tiles


def tiled_attention(inputs: AttentionInputs) -> Tensor:
    """Attention in batches of tiles of at most MOST_SCORES scores, or of one tile.

    Returns:
        (1, T, H, Dv).
    """
    device, layout, window = inputs.query.device, inputs.layout, inputs.window
    batches, places = layout.cached((window, device), lambda: _tile_batches(layout, window, device))
    # (T, H, D), which is how projections lie in memory
    query, key, value = (x[0].transpose(0, 1) for x in (inputs.query, inputs.key, inputs.value))
    grouped = attends_to_grouped_keys(device) and inputs.softcap is None
    repeats = 1 if grouped else inputs.group_size
    found = []
    for batch in batches:
        q = _gather(query, batch.queries, batch.size)
        k, v = (_gather(x, batch.keys, batch.size, repeats) for x in (key, value))
        out = _attend(q, k, v, batch.mask, inputs)
        found.append(out.transpose(1, 2).flatten(0, 1))  # (S * Q, H, Dv)
    return torch.cat(found).index_select(0, places)[None]


def _gather(x: Tensor, places: Tensor, size: int, repeats: int = 1) -> Tensor:
    """The tokens at ``places`` in S tiles (S, H, Q, D), each head ``repeats`` times."""
    tiles = x.index_select(0, places).unflatten(0, (size, -1)).transpose(1, 2)
    return tiles.repeat_interleave(repeats, 1) if repeats > 1 else tiles


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, inputs: AttentionInputs
) -> Tensor:
    if inputs.softcap is not None:
        return _softcapped(q, k, v, mask, inputs)
    return nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=inputs.dropout,
        is_causal=mask is None,
        scale=inputs.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, inputs: AttentionInputs
) -> Tensor:
    """As eager attention in transformers: the softmax is taken in float32 or wider."""
    softcap, dropout = inputs.softcap, inputs.dropout
    assert softcap is not None
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * inputs.scale / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=wide).to(q.dtype)
    return nn.functional.dropout(weights, dropout, training=dropout > 0) @ v


class TileBatch(NamedTuple):
    """S tiles of Q queries and K keys.

    Smaller tiles are filled up with place 0: nobody reads such queries, and the mask hides such
    keys.
    """

    queries: Tensor  # (S * Q,) places in the row
    keys: Tensor  # (S * K,) places in the row
    # (S, 1, Q, K) bool, or (1, 1, Q, K) where all tiles have the same mask; None: causal, Q == K
    mask: Tensor | None
    size: int  # S


class _Tile(NamedTuple):
    queries: range
    keys: tuple[range, range]  # the keys of the prompt, and those of the response
    gap: int  # tokens of other responses between the prompt and this response

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), sum(map(len, self.keys))


def _tile_batches(
    layout: RowLayout, window: int | None, device: torch.device
) -> tuple[list[TileBatch], Tensor]:
    """The batches, and the place of each token of the row in their concatenated outputs (T,)."""
    batches, places, base = [], np.zeros(layout.length, dtype=np.int64), 0
    for tiles in _similar(_tiles_of_row(layout, window)):
        batch = _batch(tiles, window, device)
        width = len(batch.queries) // len(tiles)
        for s, tile in enumerate(tiles):
            own = tile.queries
            places[own.start : own.stop] = base + s * width + np.arange(len(own))
        base += len(batch.queries)
        batches.append(batch)
    return batches, torch.from_numpy(places).to(device)


def _batch(tiles: Sequence[_Tile], window: int | None, device: torch.device) -> TileBatch:
    most_queries, most_keys = (max(tile.shape[side] for tile in tiles) for side in (0, 1))
    queries = np.zeros((len(tiles), most_queries), np.int64)
    keys = np.zeros((len(tiles), most_keys), np.int64)
    # Positions as if each response followed its prompt directly. Filling keys come after every
    # query, so that they are masked.
    q_at, k_at = np.zeros_like(queries), np.full_like(keys, np.iinfo(np.int64).max)
    for s, tile in enumerate(tiles):
        own, shape = tile.queries, tile.shape
        queries[s, : shape[0]], q_at[s, : shape[0]] = own, np.asarray(own) - tile.gap
        keys[s, : shape[1]] = [*tile.keys[0], *tile.keys[1]]
        k_at[s, : shape[1]] = [*tile.keys[0], *(place - tile.gap for place in tile.keys[1])]
        q_at[s, shape[0] :] = k_at[s, 0]
    causal = len({tile.shape for tile in tiles}) == 1 and all(
        _is_causal(tile, window) for tile in tiles
    )
    return TileBatch(
        torch.from_numpy(queries.ravel()).to(device),
        torch.from_numpy(keys.ravel()).to(device),
        None if causal else _mask(q_at, k_at, window).to(device),
        len(tiles),
    )


def _mask(q_at: np.ndarray, k_at: np.ndarray, window: int | None) -> Tensor:
    relative = (q_at - k_at[:, :1], k_at - k_at[:, :1])
    if all((at == at[:1]).all() for at in relative):  # such as for responses of one length
        q_at, k_at = q_at[:1], k_at[:1]
    distance = torch.from_numpy(q_at)[:, None, :, None] - torch.from_numpy(k_at)[:, None, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _is_causal(tile: _Tile, window: int | None) -> bool:
    return tile.queries == tile.keys[0] and (window is None or len(tile.queries) <= window)


def _tiles_of_row(layout: RowLayout, window: int | None) -> Iterator[_Tile]:
    none = range(0)
    for segment in layout.segments_and_padding():
        prompt, spans = range(segment.start, segment.start + segment.prompt), list(segment.spans())
        # The first response follows its prompt without a gap: the two are one sequence.
        sequence = range(segment.start, spans[0][1] if spans else prompt.stop)
        if len(sequence) >= LEAST_CAUSAL and (window is None or len(sequence) <= window):
            yield _Tile(sequence, (sequence, none), 0)
        else:
            for part in _parts(sequence):
                yield _Tile(part, (_visible(sequence, part, window), none), 0)
        for start, stop in spans[1:]:
            gap = start - prompt.stop
            for part in _parts(range(start, stop)):
                # for the prompt's keys, as if the response followed the prompt directly
                moved = range(part.start - gap, part.stop - gap)
                own = _visible(range(start, stop), part, window)
                yield _Tile(part, (_visible(prompt, moved, window), own), gap)


def _parts(span: range) -> Iterator[range]:
    return (span[first : first + MOST_QUERIES] for first in range(0, len(span), MOST_QUERIES))


def _visible(keys: range, queries: range, window: int | None) -> range:
    """The keys that any of the queries sees."""
    first = keys.start if window is None else max(keys.start, queries.start - window + 1)
    return range(min(first, keys.stop), min(keys.stop, queries.stop))


def _similar(tiles: Iterator[_Tile]) -> Iterator[Sequence[_Tile]]:
    """Batches of tiles of similar shapes.

    Filling up at most doubles the cost, unless tiles are small.
    """
    batch: list[_Tile] = []
    for tile in sorted(tiles, key=lambda tile: tile.shape, reverse=True):
        if batch and not _joins(tile, batch):
            yield batch
            batch = []
        batch.append(tile)
    if batch:
        yield batch


def _joins(tile: _Tile, batch: Sequence[_Tile]) -> bool:
    """Whether the tile is computed together with the batch, whose shapes are in falling order."""
    width = max(batch[0].shape[1], tile.shape[1])
    area = batch[0].shape[0] * width
    if area > SMALL_TILE:
        own = tile.shape[0] * tile.shape[1]
        if 2 * own < area or 2 * batch[-1].shape[1] < width:
            return False
    # A causal tile of another shape would lose its faster kernel.
    causal = tile.shape[0] >= LEAST_CAUSAL and tile.queries == tile.keys[0]
    if causal and tile.shape != batch[0].shape:
        return False
    return (len(batch) + 1) * area <= MOST_SCORES
