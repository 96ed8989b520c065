"""How many rows keep their scores for the backward, out of one number of bytes.

A row that keeps them costs V numbers of the input's dtype and no recomputation; one that does not is computed again (4 products of
2 * M * D * V operations in place of 3). The bytes also have to hold the logits of the chunk that is being computed.
"""

from __future__ import annotations

from typing import Literal

import torch

MemoryBudget = int | Literal["auto"]

CPU_ROWS = 256  # of a product: fewer starve it (128: a fifth slower on an AVX2 CPU), more are padding where a batch is small
CHUNK_BYTES = 512 << 20  # of a GPU's float32 logits, so that two such matrices and what is smaller fit into 1 GiB
SHARE = 16  # "auto": this part of a GPU's memory; 9.4 GB of an H200's, which keeps 16,384 rows of 256,000 columns in 16 bits
CPU_AUTO = 128 << 20  # "auto" on a CPU: an eighth of what M=2048, D=768, V=50257 takes naively, where it keeps nothing
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
    return torch.cuda.get_device_properties(device).total_memory // SHARE if device.type == "cuda" else CPU_AUTO


# What torch.compiler.assume_constant_result sets; calling that would load the compiler, and Triton, with the package.
auto_bytes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def saved_rows(budget: MemoryBudget, rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many of ``rows`` keep their scores: all, or a number of whole chunks, so that few sizes occur.

    All need room for the logits of one chunk beside them. Where some are computed again, a second one's stands for what that takes:
    1 GiB in all on a GPU, which 16,384 rows of 4,096 columns fit into.
    """
    size = auto_bytes(device) if budget == "auto" else budget
    row, chunk = padded(vocabulary) * dtype.itemsize, chunk_bytes(vocabulary, device)
    if rows * row + chunk <= size:
        return rows
    whole = chunk_rows(vocabulary, device)
    return max(0, size - 2 * chunk) // row // whole * whole
