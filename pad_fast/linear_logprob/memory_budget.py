"""How many rows keep their scores for the backward, out of one number of bytes.

A row that keeps them costs V numbers of the input's dtype and no recomputation; one that does not is computed again (4 products of
2 * M * D * V operations in place of 3). The bytes also have to hold what is worked with: on a GPU the logits of the chunk that is
being computed, on a CPU the packed rows and the tiles of :mod:`pad_fast.linear_logprob.torch_impl`.
"""

from __future__ import annotations

from typing import Literal

import torch

from pad_fast.device import total_memory
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import accumulator

MemoryBudget = int | Literal["auto"]

CPU_ROWS = 256  # of a product: fewer starve it (128: a fifth slower on an AVX2 CPU), more are padding where a batch is small
CHUNK_BYTES = (
    512 << 20
)  # of a GPU's float32 logits, so that two such matrices and what is smaller fit into 1 GiB
SHARE = 16  # "auto": this part of a GPU's memory; 9.4 GB of an H200's, which keeps 16,384 rows of 256,000 columns in 16 bits
CPU_AUTO = (
    128 << 20
)  # "auto" on a CPU: an eighth of what M=2048, D=768, V=50257 takes naively, where it keeps nothing
ROW_BYTES = 64  # of a row's own numbers: label, place, peak, total, upstream gradient, and what they are made of
ALIGNMENT = 64  # columns, to which rows of scores are padded: 128 bytes in 16 bits


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of every product with the output head on this device, whatever the batch: a library's bits change with that number."""
    if device.type != "cuda":
        return CPU_ROWS
    return max(16, min(2048, 1 << (CHUNK_BYTES // (4 * vocabulary)).bit_length() - 1))


def padded(vocabulary: int) -> int:
    """Columns of a row of scores in memory."""
    return (vocabulary + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def chunk_bytes(vocabulary: int, device: torch.device) -> int:
    """Of the float32 logits of a chunk."""
    return 4 * chunk_rows(vocabulary, device) * vocabulary


def auto_bytes(device: torch.device) -> int:
    """What "auto" stands for: on a GPU a part of the memory that it has, not of what is free, so that it is the same at each call."""
    memory = total_memory(device)
    return CPU_AUTO if memory is None else memory // SHARE


# What torch.compiler.assume_constant_result sets; calling that would load the compiler, and Triton, with the package.
auto_bytes._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    """Bytes that :mod:`pad_fast.linear_logprob.torch_impl` holds on a CPU beside arguments, results and scores, for so many packed ``rows``.

    ``kept``: some rows keep their scores; ``recomputed``: some do not. A test compares this with what is measured.
    """
    wide, columns = accumulator(dtype).itemsize, min(logits_torch.TILE_COLUMNS, vocabulary)
    narrow, tile = dtype.itemsize < wide, wide * CPU_ROWS * columns
    if not backward:
        packed = -(-rows // CPU_ROWS) * CPU_ROWS * width
        block = wide * CPU_ROWS * vocabulary if kept and narrow else 0
        cast = (packed + columns * width) * wide if narrow else 0
        return (
            rows * ROW_BYTES
            + packed * dtype.itemsize
            + cast
            + block
            + tile * (1 + 2 * (kept and softcap))
        )
    few = min(rows, CPU_ROWS)  # a forward's products have more, of zeros
    cast = (
        wide * columns * width * (1 + recomputed) if narrow else 0
    )  # slices of the weight and of its gradient
    if recomputed:
        beside = wide * rows * width + cast + wide * few * columns * (2 + softcap)
    else:  # g * H takes two of its size while it is made
        beside = max(wide * rows * width, cast + wide * few * width + wide * few * columns * narrow)
    return rows * (ROW_BYTES + width * (dtype.itemsize + wide)) + beside


def workspace(
    rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    recomputed: bool,
) -> int:
    """Bytes that forward and backward hold beside scores.

    On a GPU the float32 logits of a chunk; where rows are computed again a second one's stands for what that takes, 1 GiB in all,
    which 16,384 rows of 4,096 columns fit into.
    """
    if device.type == "cuda":
        return (1 + recomputed) * chunk_bytes(vocabulary, device)
    sizes = (rows, width, vocabulary, dtype)
    return max(
        cpu_workspace(*sizes, kept=True, softcap=True, backward=backward, recomputed=recomputed)
        for backward in (False, True)
    )


def _bytes(budget: MemoryBudget, device: torch.device) -> int:
    return auto_bytes(device) if budget == "auto" else budget


def saved_rows(
    budget: MemoryBudget,
    rows: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """How many of ``rows`` keep their scores: all, or a number of whole chunks, so that few sizes occur."""
    size = _bytes(budget, device)
    row = padded(vocabulary) * dtype.itemsize
    if rows * row + workspace(rows, width, vocabulary, dtype, device, recomputed=False) <= size:
        return rows
    whole = chunk_rows(vocabulary, device)
    return (
        max(0, size - workspace(rows, width, vocabulary, dtype, device, recomputed=True))
        // row
        // whole
        * whole
    )


def walked_rows(
    budget: MemoryBudget, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> int:
    """How many rows may have scores at a time where none are kept for later (:mod:`pad_fast.linear_logprob.prompt_chunks`)."""
    row = padded(vocabulary) * dtype.itemsize + width * (
        dtype.itemsize + 2 * accumulator(dtype).itemsize
    )  # packed, times g, gradient
    return (
        max(
            0,
            _bytes(budget, device)
            - workspace(0, width, vocabulary, dtype, device, recomputed=False),
        )
        // row
    )
