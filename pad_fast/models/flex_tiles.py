"""Tiles of FlexAttention for GPUs whose shared memory PyTorch's own tiles exceed.

PyTorch chooses tiles for the head sizes and GPUs that it was tuned on. On others a kernel may ask
for more shared memory than there is and fails to be compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Bytes of shared memory that one program may take: RTX 3090 to 5090, A10, L4 and L40S; A100; H100,
# H200 and B200.
SM_86, SM_80, SM_90 = 101_376, 166_912, 232_448
# What a tile may take more in another release of Triton: from 3.6 to 3.9 it was 1,536 bytes.
MARGIN = 2048
# The names of FlexAttention's options, in the order of a tile's numbers.
FORWARD = ("fwd_BLOCK_M", "fwd_BLOCK_N", "fwd_num_stages", "fwd_num_warps")
BACKWARD = (
    *("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"),
    *("bwd_num_stages", "bwd_num_warps"),
)
Options = tuple[tuple[str, str], ...]


class Choice(NamedTuple):
    """A tile and the shared memory that it takes."""

    least: int  # bytes
    tile: tuple[int, ...] | None  # the numbers of the options; None: PyTorch's own

    def fits(self, shared_memory: int) -> bool:
        """Whether a GPU has enough of it."""
        return self.least + (0 if self.tile is None else MARGIN) <= shared_memory


# The choices for heads of a padded size and bytes of a number, from the fastest on. Heads and sizes
# that are not here take PyTorch's own everywhere. The bytes of a tile are those of a kernel with
# grouped heads, a window and a softcap, as tools/attention_memory.py compiles it.
FORWARDS = {
    (128, 2): (Choice(SM_80, None), Choice(67_840, (128, 64, 2, 8))),
    (256, 2): (Choice(SM_80, None), Choice(87_168, (32, 64, 2, 4))),
    (512, 2): (Choice(101_120, (32, 32, 2, 4)), Choice(67_136, (32, 16, 2, 4))),
    (128, 4): (
        Choice(SM_90, None),
        Choice(151_808, (128, 32, 3, 4)),
        Choice(75_136, (64, 32, 2, 4)),
    ),
    (256, 4): (
        Choice(SM_90, None),
        Choice(137_344, (64, 16, 3, 4)),
        Choice(68_288, (32, 16, 2, 4)),
    ),
    (512, 4): (Choice(SM_90, None), Choice(99_776, (16, 16, 2, 4))),
}
BACKWARDS = {
    (256, 2): (Choice(SM_80, None), Choice(70_656, (32, 32, 32, 32, 2, 4))),
}


def tile_options(head: int, dtype: torch.dtype, shared_memory: int | None) -> Options:
    """The options that keep FlexAttention's kernels inside a GPU's shared memory.

    Args:
        head: the larger size of a head, of queries and keys or of values.
        dtype: of the values.
        shared_memory: bytes that one program may take; None where that is not known.

    Returns:
        Names of FlexAttention's ``kernel_options`` with their numbers as text; empty where
        PyTorch's own tiles fit, and on older GPUs, which hold other things in it. Where none fits,
        those that take the least.

    Example:
        >>> import torch
        >>> tile_options(256, torch.bfloat16, 232_448)
        ()
        >>> tile_options(256, torch.bfloat16, 101_376)[:2]
        (('fwd_BLOCK_M', '32'), ('fwd_BLOCK_N', '64'))
    """
    if shared_memory is None or shared_memory < SM_86:
        return ()
    found: Options = ()
    for names, choices in ((FORWARD, FORWARDS), (BACKWARD, BACKWARDS)):
        of_size = choices.get((padded_head(head), dtype.itemsize), ())
        fitting = [choice for choice in of_size if choice.fits(shared_memory)]
        for _, tile in (fitting or of_size[-1:])[:1]:
            found += tuple(zip(names, map(str, tile or ()), strict=False))
    return found


def padded_head(size: int) -> int:
    """The size that a kernel gives a head: a power of two, and 16 or more."""
    return max(16, 1 << (size - 1).bit_length())
