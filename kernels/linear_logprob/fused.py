"""linear_logprob_fwd: log-probabilities of hidden states times the head, without logits in memory.

A matrix product with an online softmax behind each tile. It has no gradient: the backward computes
logits again. linear_logprob_join puts the parts of the vocabulary together.
"""

import triton
import triton.language as tl

from ..common.numerics import even_tanh
from ..logprob.softmax import NARROW, label_logp, no_columns, power


@triton.jit
def _load_factor(
    source,
    first,
    k,
    size,
    width,
    stride,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    """A tile (ROWS, BLOCK_K) of a factor; zeros beyond its (size, width)."""
    if DESCRIBED:
        tile = source.load([first, k])
    else:
        places = first + tl.arange(0, ROWS)
        columns = k + tl.arange(0, BLOCK_K)
        there = (places < size)[:, None] & (columns < width)[None, :]
        tile = tl.load(
            source + places.to(tl.int64)[:, None] * stride + columns[None, :], mask=there, other=0.0
        )
    return tile


@triton.jit
def block_and_part(item, SPLITS: tl.constexpr):
    """The block of rows and the part of the vocabulary of a work item.

    Items that run at the same time are few blocks of rows with all parts of the vocabulary: their
    hidden states stay in the second-level cache, and each weight is read once for all of them. In
    the other order the hidden states of all rows would be read again for every tile of the
    vocabulary (tools/l2_model.py).
    """
    return item // SPLITS, item % SPLITS


@triton.jit(do_not_specialize=["rows", "vocabulary"])
def linear_logprob_fwd(
    hidden,  # (M, D), a pointer, or a tensor descriptor of tiles (BLOCK_M, BLOCK_K)
    weight,  # (V, D), a pointer, or a tensor descriptor of tiles (BLOCK_N, BLOCK_K)
    bias_ptr,  # (V,)
    labels_ptr,  # (M,)
    label_ptr,  # (SPLITS, M), the label's z, NaN in the parts that do not hold it
    peak_ptr,  # (SPLITS, M), max z, in z's unit; 0 if NARROW
    total_ptr,  # (SPLITS, M), sum of power(z - peak)
    rows,
    vocabulary,
    width,
    stride_hidden: tl.int64,
    stride_weight: tl.int64,
    inner: tl.float64,
    outer: tl.float64,
    tanh,  # the polynomial of inner * x for a softcap, () without one
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Programs walk over the SPLITS parts of the vocabulary, then over blocks of rows."""
    ACC: tl.constexpr = tl.float32
    inner = tl.full((), inner, ACC)
    outer = tl.full((), outer, ACC)
    blocks = tl.cdiv(rows, BLOCK_M)
    part = tl.cdiv(tl.cdiv(vocabulary, BLOCK_N), SPLITS) * BLOCK_N
    for item in range(tl.program_id(0), blocks * SPLITS, tl.num_programs(0)):
        block, split = block_and_part(item, SPLITS)
        first = block * BLOCK_M
        places = first + tl.arange(0, BLOCK_M)
        label = tl.load(labels_ptr + places, mask=places < rows, other=-1).to(tl.int64)
        label = tl.where(label < vocabulary, label, -1)  # the last tile has columns beyond
        peak, total = no_columns(BLOCK_M, CAPPED, ACC)
        own = tl.full((BLOCK_M,), float("nan"), ACC)
        for column in range(split * part, tl.minimum((split + 1) * part, vocabulary), BLOCK_N):
            x = tl.zeros((BLOCK_M, BLOCK_N), ACC)
            for k in range(0, width, BLOCK_K):
                h = _load_factor(
                    hidden, first, k, rows, width, stride_hidden, BLOCK_M, BLOCK_K, DESCRIBED
                )
                w = _load_factor(
                    weight, column, k, vocabulary, width, stride_weight, BLOCK_N, BLOCK_K, DESCRIBED
                )
                x = tl.dot(h, w.T, x, input_precision="ieee")
            columns = column + tl.arange(0, BLOCK_N)
            if HAS_BIAS:
                bias = tl.load(bias_ptr + columns, mask=columns < vocabulary, other=0.0)
                x += bias.to(ACC)[None, :]
            z = even_tanh(x, inner, outer, tanh) if CAPPED else inner * x
            hit = columns[None, :] == label[:, None]
            own = tl.where(tl.max(hit.to(tl.int32), 1) > 0, tl.sum(tl.where(hit, z, 0.0), 1), own)
            z = tl.where((columns < vocabulary)[None, :], z, float("-inf"))
            if CAPPED == NARROW:
                total += tl.sum(tl.exp2(z), 1)
            else:
                higher = tl.maximum(peak, tl.max(z, 1))
                total = total * power(peak - higher, CAPPED)
                total += tl.sum(power(z - higher[:, None], CAPPED), 1)
                peak = higher
        out = tl.full((), split, tl.int64) * rows + places
        tl.store(label_ptr + out, own, mask=places < rows)
        tl.store(peak_ptr + out, peak, mask=places < rows)
        tl.store(total_ptr + out, total, mask=places < rows)


@triton.jit(do_not_specialize=["rows"])
def linear_logprob_join(
    label_ptr,  # (SPLITS, M)
    peak_ptr,  # (SPLITS, M)
    total_ptr,  # (SPLITS, M)
    logp_ptr,  # (M,)
    top_ptr,  # (M,)
    sums_ptr,  # (M,)
    rows,
    SPLITS: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A program takes BLOCK_M rows, and joins the parts of the vocabulary one after another."""
    places = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = places < rows
    top = tl.load(peak_ptr + places, mask=there, other=0.0)
    for split in tl.static_range(1, SPLITS):
        part_ptr = peak_ptr + split * rows.to(tl.int64)
        top = tl.maximum(top, tl.load(part_ptr + places, mask=there, other=0.0))
    sums = tl.zeros((BLOCK_M,), tl.float32)
    own = tl.full((BLOCK_M,), float("nan"), tl.float32)
    for split in tl.static_range(SPLITS):
        at = split * rows.to(tl.int64) + places
        peak = tl.load(peak_ptr + at, mask=there, other=0.0)
        sums += tl.load(total_ptr + at, mask=there, other=0.0) * power(peak - top, CAPPED)
        found = tl.load(label_ptr + at, mask=there, other=0.0)
        own = tl.where(found == found, found, own)
    tl.store(logp_ptr + places, label_logp(own, top, sums, CAPPED), mask=there)
    tl.store(top_ptr + places, top, mask=there)
    tl.store(sums_ptr + places, sums, mask=there)
