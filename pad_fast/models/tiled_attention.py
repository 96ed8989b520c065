"""Attention over a shared prompt in tiles, by a library's fused attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pad_fast.models.layout import Layout

if TYPE_CHECKING:
    pass

QUERIES = 512  # of a tile at most, so that few keys are loaded only to be masked
CAUSAL = 256  # a prompt and a response this long are a tile of their own, whose kernel skips what is masked
LIKE = 4096  # scores; tiles smaller than this share a batch whatever their shapes
SCORES = 1 << 23  # of a batch of tiles


# Tiles.


class Tiles(NamedTuple):
    """S tiles of Q queries and K keys. Queries and keys that only fill up a tile are those of place 0; nobody reads the former, and
    the mask hides the latter."""

    queries: Tensor  # (S * Q,)
    keys: Tensor  # (S * K,)
    mask: (
        Tensor | None
    )  # (S, 1, Q, K) bool, or (1, 1, Q, K) where all tiles have the same; None: causal, Q == K
    number: int  # S


def _in_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    batches, places = layout.plan(
        (window, query.device), lambda: _tiles(layout, window, query.device)
    )
    groups = query.shape[1] // key.shape[1]
    grouped = (
        query.device.type == "cpu" and softcap is None
    )  # a GPU's kernels with a mask take no groups, and all scores would be held
    q, k, v = (
        x[0].transpose(0, 1) for x in (query, key, value)
    )  # (T, H, d), which is how projections lie in memory
    found = []
    for tiles in batches:
        tile_q = _gathered(q, tiles.queries, tiles.number)
        tile_k, tile_v = (_gathered(x, tiles.keys, tiles.number) for x in (k, v))
        if groups > 1 and not grouped:
            tile_k, tile_v = (x.repeat_interleave(groups, 1) for x in (tile_k, tile_v))
        if softcap is None:
            options: dict[str, Any] = {
                "attn_mask": tiles.mask,
                "is_causal": tiles.mask is None,
                "enable_gqa": grouped,
            }
            out = nn.functional.scaled_dot_product_attention(
                tile_q, tile_k, tile_v, dropout_p=dropout, scale=scale, **options
            )
        else:
            out = _capped(tile_q, tile_k, tile_v, tiles.mask, scale, dropout, softcap)
        found.append(out.transpose(1, 2).flatten(0, 1))  # (S * Q, H, d)
    return torch.cat(found).index_select(0, places)[None]


def _gathered(x: Tensor, places: Tensor, count: int) -> Tensor:
    return x.index_select(0, places).unflatten(0, (count, -1)).transpose(1, 2)  # (S, H, Q, d)


def _capped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    softcap: float,
) -> Tensor:
    """As eager attention does it: the softmax is taken in float32, or wider."""
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=wide).to(q.dtype)
    return nn.functional.dropout(weights, dropout, training=dropout > 0) @ v


class _Tile(NamedTuple):
    queries: range
    keys: tuple[range, range]  # of the prompt, and of the response
    gap: int  # tokens between the two that are no part of the sequence

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), sum(map(len, self.keys))


def _tiles(layout: Layout, window: int | None, device: torch.device) -> tuple[list[Tiles], Tensor]:
    """Batches of tiles, and the place of each token of the row in their concatenated outputs."""
    batches, places, base = [], np.zeros(layout.length, dtype=np.int64), 0
    for batch in _alike(_cut(layout, window)):
        size, width = (max(tile.shape[side] for tile in batch) for side in (0, 1))
        queries, keys = (
            np.zeros((len(batch), size), np.int64),
            np.zeros((len(batch), width), np.int64),
        )
        # places as if each response stood right behind its prompt; keys that fill up stand behind every query
        q_at, k_at = np.zeros_like(queries), np.full_like(keys, np.iinfo(np.int64).max)
        for s, tile in enumerate(batch):
            own, shape = tile.queries, tile.shape
            queries[s, : shape[0]], q_at[s, : shape[0]] = own, np.asarray(own) - tile.gap
            keys[s, : shape[1]] = [*tile.keys[0], *tile.keys[1]]
            k_at[s, : shape[1]] = [*tile.keys[0], *(place - tile.gap for place in tile.keys[1])]
            q_at[s, shape[0] :] = k_at[s, 0]
            places[own.start : own.stop] = base + s * size + np.arange(shape[0])
        base += queries.size
        causal = len({tile.shape for tile in batch}) == 1 and all(
            _is_causal(tile, window) for tile in batch
        )
        mask = None if causal else _mask(q_at, k_at, window).to(device)
        batches.append(
            Tiles(
                torch.from_numpy(queries.ravel()).to(device),
                torch.from_numpy(keys.ravel()).to(device),
                mask,
                len(batch),
            )
        )
    return batches, torch.from_numpy(places).to(device)


def _mask(q_at: np.ndarray, k_at: np.ndarray, window: int | None) -> Tensor:
    if all(
        (at == at[:1]).all() for at in (q_at - k_at[:, :1], k_at - k_at[:, :1])
    ):  # as of responses that are equally long
        q_at, k_at = q_at[:1], k_at[:1]
    distance = torch.from_numpy(q_at)[:, None, :, None] - torch.from_numpy(k_at)[:, None, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _is_causal(tile: _Tile, window: int | None) -> bool:
    return tile.queries == tile.keys[0] and (window is None or len(tile.queries) <= window)


def _cut(layout: Layout, window: int | None) -> Iterator[_Tile]:
    for segment in layout.whole():
        prompt, spans = range(segment.start, segment.start + segment.prompt), list(segment.spans())
        whole = range(
            segment.start, spans[0][1] if spans else prompt.stop
        )  # with its first response, behind which nothing was left out
        if len(whole) >= CAUSAL and (window is None or len(whole) <= window):
            yield _Tile(whole, (whole, range(0)), 0)
        else:
            yield from (
                _Tile(part, (_seen(whole, part, window), range(0)), 0) for part in _parts(whole)
            )
        for start, stop in spans[1:]:
            gap = start - prompt.stop
            for part in _parts(range(start, stop)):
                own = range(
                    part.start - gap, part.stop - gap
                )  # as if it stood right behind its prompt
                seen = _seen(range(start, stop), part, window)
                yield _Tile(part, (_seen(prompt, own, window), seen), gap)


def _parts(span: range) -> Iterator[range]:
    return (span[first : first + QUERIES] for first in range(0, len(span), QUERIES))


def _seen(keys: range, queries: range, window: int | None) -> range:
    """The keys that any of the queries sees."""
    first = keys.start if window is None else max(keys.start, queries.start - window + 1)
    return range(min(first, keys.stop), min(keys.stop, queries.stop))


def _alike(tiles: Iterator[_Tile]) -> Iterator[Sequence[_Tile]]:
    """Tiles in batches of like shapes: filling up costs at most as much again, but where they are small."""
    batch: list[_Tile] = []
    for tile in sorted(tiles, key=lambda tile: tile.shape, reverse=True):
        if batch:
            size, width = batch[0].shape[0], max(batch[0].shape[1], tile.shape[1])
            area = size * width
            alone = area > LIKE and (
                2 * tile.shape[0] * tile.shape[1] < area or 2 * batch[-1].shape[1] < width
            )
            causal = (
                tile.shape[0] >= CAUSAL
                and tile.queries == tile.keys[0]
                and tile.shape != batch[0].shape
            )
            if alone or causal or (len(batch) + 1) * area > SCORES:
                yield batch
                batch = []
        batch.append(tile)
    if batch:
        yield batch
