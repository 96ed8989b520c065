"""How many rows keep d log p / d z for the backward, out of one number of bytes.

A row that keeps it costs V numbers of the input's dtype. A row that does not is computed again: 4
products of 2 * M * D * V operations in place of 3. The bytes also hold the workspace: on a GPU the
logits of one chunk, on a CPU live rows and the tiles of :mod:`.torch_impl`.
"""

from __future__ import annotations

from typing import Literal

import torch

from pad_fast.device import has_wide_products, is_gpu, total_memory
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import accumulator

MemoryBudget = int | Literal["auto"]

# Rows of a product on a CPU. Fewer leave it short of work (128 took a fifth more time on an AVX2
# CPU); with more, a small batch is mostly padding.
CPU_ROWS = 256
# Bytes of the logits of a GPU's chunk, in float32 or for float64 in that.
CHUNK_BYTES = 512 << 20
# The share of a GPU's memory that "auto" stands for: a sixteenth. That is 9.4 GB of an H200, in
# which 16,384 rows of 256,000 columns keep their scores in 16 bits.
SHARE = 16
# The bytes that "auto" stands for on a CPU: half of what plain PyTorch takes for M = 2048, D = 768,
# V = 50257, in which all of these rows keep theirs. Eight responses of 128 tokens do so up to
# V = 128,000.
CPU_AUTO = 512 << 20
# What a GPU may take whatever the budget: the least in which all sizes can be done.
WORKSPACE = 1 << 30
# The tiles of a GPU's backward. 16,384 rows by 8,192 columns are 256 MiB of scores in 16 bits,
# and the gradient of hidden states is added to 16 times at V = 128,256.
GPU_TILE_ROWS = 2048
GPU_TILE_COLUMNS = 8192
# A GPU's batch that is smaller than a chunk is padded to a multiple of this many rows: the tile of
# a product.
GPU_ROWS = 128
# Rows whose product with the weight takes as long as to add to its gradient in float32 once: 2 *
# rows operations an entry against 8 bytes. By the roofs of benchmarks/results, 712 TFLOP/s and 4.23
# TB/s of an H200 in bfloat16, and elsewhere 0.418 TFLOP/s and 26 GB/s of a CPU's two threads.
PASS_ROWS_16_BITS, PASS_ROWS = 674, 64
# Bytes of a row's own numbers: label, place, peak, total, upstream gradient and intermediates.
ROW_BYTES = 80
# Rows of scores are padded to a multiple of this many columns: 128 bytes in 16 bits.
ALIGNMENT = 64


def chunk_rows(vocabulary: int, device: torch.device, dtype: torch.dtype) -> int:
    """Rows of a product with the output head on this device, in batches of so many or more.

    The number is fixed because a library's bits change with it.
    """
    if not is_gpu(device):
        return CPU_ROWS
    row = accumulator(dtype).itemsize * vocabulary
    return max(16, min(2048, 1 << (CHUNK_BYTES // row).bit_length() - 1))


def tile_columns(width: int) -> int:
    """Columns of a tile of a GPU's backward, so that a slice of the weight is 256 MiB at most."""
    return min(GPU_TILE_COLUMNS, 1 << (GPU_TILE_COLUMNS**2 // max(1, width)).bit_length() - 1)


def rows_of_chunk(rows: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> int:
    """Rows of every product of a batch of ``rows``: fewer on a GPU if there are not that many.

    A row's bits are the same in all batches of at least :func:`chunk_rows` rows, and in those
    smaller ones that have the same number of tiles.
    """
    most = chunk_rows(vocabulary, device, dtype)
    if not is_gpu(device):
        return most
    return min(most, max(1, -(-rows // GPU_ROWS)) * GPU_ROWS)


def padded(vocabulary: int) -> int:
    """Columns of a row of scores in memory."""
    return (vocabulary + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def chunk_bytes(vocabulary: int, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of the logits of a chunk, which are those of the accumulator."""
    return accumulator(dtype).itemsize * chunk_rows(vocabulary, device, dtype) * padded(vocabulary)


def factor_bytes(dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of a number that a GPU's products read: more where 16-bit ones are widened before."""
    return dtype.itemsize if has_wide_products(device) else accumulator(dtype).itemsize


def widened_bytes(dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of the copy of a number that products read; 0 where they read the number itself."""
    factor = factor_bytes(dtype, device)
    return factor if factor > dtype.itemsize else 0


def auto_bytes(device: torch.device) -> int:
    """The bytes that "auto" stands for.

    On a GPU they are a share of all its memory and not of what is free, so that every call gets the
    same number.
    """
    memory = total_memory(device)
    return CPU_AUTO if memory is None else memory // SHARE


# What torch.compiler.assume_constant_result sets. Calling that would load the compiler, and Triton
# with it, when the package is imported.
auto_bytes._dynamo_marked_constant = True  # type: ignore[attr-defined]
factor_bytes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cpu_workspace(
    rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    *,
    kept: bool,
    recomputed: bool,
    softcap: bool,
    backward: bool,
) -> int:
    """Bytes that a CPU's forward or backward holds, arguments, results and scores excluded.

    A test compares them with what is measured.

    Args:
        rows: number of live rows; 0 for what whole chunks hold, however many they are.
        width: D, the hidden size.
        vocabulary: V.
        dtype: that of the hidden states.
        kept: whether some rows keep their scores.
        recomputed: whether some rows do not.
        softcap: whether there is one.
        backward: the backward's bytes, or else the forward's.
    """
    wide, columns = accumulator(dtype).itemsize, min(logits_torch.TILE_COLUMNS, vocabulary)
    narrow, tile = dtype.itemsize < wide, wide * CPU_ROWS * columns
    if not backward:
        gathered = -(-rows // CPU_ROWS) * CPU_ROWS * width
        cast = (gathered + columns * width) * wide if narrow else 0
        row = wide * vocabulary if kept and narrow else 0
        # Whole chunks of kept rows are multiplied into the place of their scores; fewer rows,
        # and those that keep nothing, into a tile of a whole chunk.
        chunks = rows >= CPU_ROWS or rows == 0
        whole = chunks * (CPU_ROWS * row + 2 * tile * (kept and softcap))
        rest = 0 if recomputed else rows % CPU_ROWS
        last = rest * row + tile * max(1, 2 * softcap * rest / CPU_ROWS) if rest else 0
        plain = tile * (not kept or recomputed)
        return rows * ROW_BYTES + gathered * dtype.itemsize + cast + int(max(whole, last, plain))
    few = min(rows, CPU_ROWS)  # a forward's products are padded to more rows
    # Hidden states or g * H, and the gradient of hidden states that are computed again.
    states = wide * rows * width * (1 + recomputed)
    # Slices of the weight and of its gradient.
    cast = wide * columns * width * (1 + recomputed) if narrow else 0
    tiles = wide * few * columns * (1 + 2 * softcap if recomputed else int(narrow))
    gathered = few * width * (dtype.itemsize + 2 * wide)
    return rows * ROW_BYTES + states + max(cast + tiles, gathered)


def workspace(
    rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    recomputed: bool,
) -> int:
    """Bytes that forward and backward hold in addition to what rows keep.

    On a GPU they are the logits of a chunk in the forward, and in the backward a slice of the
    weight's gradient and the fewest rows that a product takes. That fits in ``WORKSPACE``.
    """
    if is_gpu(device):
        sizes = (width, vocabulary, dtype, device)
        backward = GPU_TILE_ROWS * _product_bytes(*sizes, recomputed)
        backward += _slice_bytes(*sizes, recomputed)
        return rows * ROW_BYTES + max(_forward_bytes(*sizes), backward, _gather_bytes(width, dtype))
    own = (rows, width, vocabulary, dtype)
    return max(
        cpu_workspace(*own, kept=True, softcap=True, backward=backward, recomputed=recomputed)
        for backward in (False, True)
    )


def _forward_bytes(width: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of a GPU's chunk in the forward: logits, hidden states, and what is widened."""
    rows = chunk_rows(vocabulary, device, dtype)
    widened = (rows + logits_torch.TILE_COLUMNS) * widened_bytes(dtype, device)
    return chunk_bytes(vocabulary, device, dtype) + width * (rows * dtype.itemsize + widened)


def _slice_bytes(
    width: int, vocabulary: int, dtype: torch.dtype, device: torch.device, recomputed: bool
) -> int:
    """Bytes of a slice of the weight's gradient, and of what rows that are done again hold with it.

    That is a tile of logits and, where products are widened, the slice of the weight. Of rows that
    kept their scores, some are widened at a time.
    """
    wide, columns = accumulator(dtype).itemsize, min(tile_columns(width), padded(vocabulary))
    widened = columns * widened_bytes(dtype, device)
    own = wide * columns * width if dtype.itemsize < wide else 0
    if not recomputed:
        return own + CPU_ROWS * widened
    tile = GPU_TILE_ROWS * columns * wide + widened * width
    # Before there is a tile, rows are gathered, in a pass that makes no gradient of theirs.
    later = GPU_TILE_ROWS * (width * wide + columns * factor_bytes(dtype, device))
    return own + max(tile, _gather_bytes(width, dtype) - later)


def _gather_bytes(width: int, dtype: torch.dtype) -> int:
    """Bytes that a GPU holds while it gathers rows, the gathered ones apart."""
    return GPU_TILE_ROWS * width * (dtype.itemsize + 2 * accumulator(dtype).itemsize)


def _product_bytes(
    width: int, vocabulary: int, dtype: torch.dtype, device: torch.device, recomputed: bool
) -> int:
    """Bytes that a GPU's backward holds for each row of a product of gradients."""
    factor = factor_bytes(dtype, device)
    scores = min(tile_columns(width), padded(vocabulary)) * factor
    if not recomputed:  # only what is widened, a slice of the vocabulary at a time
        scores = logits_torch.TILE_COLUMNS * widened_bytes(dtype, device)
    return width * (factor + accumulator(dtype).itemsize) + scores


def kept_bytes(width: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of a row that keeps its scores; on a GPU also those of its g * H in the backward."""
    states = width * factor_bytes(dtype, device) if is_gpu(device) else 0
    return padded(vocabulary) * dtype.itemsize + states


def saved_rows(
    budget: MemoryBudget,
    rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """How many of ``rows`` keep their scores for the backward.

    All of them, or a number of whole chunks, so that few sizes occur.
    """
    size = _bytes(budget, device)
    row = kept_bytes(width, vocabulary, dtype, device)
    if rows * row + workspace(rows, width, vocabulary, dtype, device, recomputed=False) <= size:
        return rows
    chunk = chunk_rows(vocabulary, device, dtype)
    rest = size - workspace(rows, width, vocabulary, dtype, device, recomputed=True)
    return max(0, rest) // row // chunk * chunk


def product_rows(
    budget: MemoryBudget,
    rows: int,
    kept: int | None,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """How many rows a product of gradients may take at once.

    ``kept`` rows keep their scores for the backward, or with None, for a frozen head, the
    product is done in the forward. A CPU takes all rows in tiles of its own.
    """
    if not is_gpu(device):
        return max(1, rows)
    sizes = (width, vocabulary, dtype, device)
    rest = max(_bytes(budget, device), WORKSPACE) - rows * ROW_BYTES
    if kept is None:
        row = padded(vocabulary) * dtype.itemsize + _product_bytes(*sizes, False)
        fitting = (rest - _forward_bytes(*sizes)) // row
        # Whole chunks, or where not even one fits beside its logits, a part of it at a time.
        step = chunk_rows(vocabulary, device, dtype)
        step = step if fitting >= step else GPU_ROWS
        return max(step, fitting // step * step)
    again = kept != rows
    rest -= kept * kept_bytes(*sizes) + _slice_bytes(*sizes, again)
    fitting = rest // _product_bytes(*sizes, again)
    return max(GPU_TILE_ROWS, fitting // GPU_TILE_ROWS * GPU_TILE_ROWS)


def frozen_head_bytes(budget: MemoryBudget) -> int:
    """The most that a frozen head's gradients of logits take at once on a GPU that is planned."""
    return max(_bytes(budget, torch.device("cpu")), WORKSPACE)


def rows_at_a_time(
    budget: MemoryBudget,
    rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """How many of ``rows`` may have scores at a time where none is kept for later.

    This is for whole prompts at a time, see :mod:`pad_fast.linear_logprob.prompt_chunks`. The
    gradient of a 16-bit head is then a sum in float32, beside which the rows have to fit.
    """
    wide = accumulator(dtype).itemsize
    # A row has its scores, its hidden state, that times g, and the gradient of it.
    row = padded(vocabulary) * dtype.itemsize + width * (dtype.itemsize + 2 * wide)
    if is_gpu(device):  # and where products are widened, a slice of its scores
        row += logits_torch.TILE_COLUMNS * widened_bytes(dtype, device)
    fixed = rows * ROW_BYTES
    fixed += workspace(CPU_ROWS, width, vocabulary, dtype, device, recomputed=False)
    if dtype.itemsize < wide:
        fixed += wide * vocabulary * (width + 1)  # with that of the bias
    return max(0, _bytes(budget, device) - fixed) // row


def pass_rows(dtype: torch.dtype, device: torch.device) -> int:
    """Rows that are done again in the time of one pass over a float32 gradient of the weight."""
    quick = dtype.itemsize < accumulator(dtype).itemsize and has_wide_products(device)
    return PASS_ROWS_16_BITS if quick else PASS_ROWS


def _bytes(budget: MemoryBudget, device: torch.device) -> int:
    return auto_bytes(device) if budget == "auto" else budget
