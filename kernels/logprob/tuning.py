"""How much of a row a program takes at once, for each architecture.

The numbers are fixed and never tried out at run time, so that results keep their bits. Those of
sm_90 are the fastest of the tiles that ``benchmarks/tilings.py`` timed on an H200. The others
follow from the reasons below and were not timed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from ..common.device import architecture, nearest


@dataclass(frozen=True)
class Tiling:
    """Tiles of a row of logits."""

    tile_bytes: int  # bytes of logits in a tile, a power of two
    num_warps: int
    chunk: int  # tiles of a row that one program of the backward takes
    # A thread's where the compiler would else use a stack; None leaves it to the compiler.
    most_registers: int | None = None

    def block(self, itemsize: int) -> int:
        """Columns of a tile."""
        return self.tile_bytes // itemsize

    def limits(self, tight: bool) -> dict[str, int]:
        """The limit of registers, for the ``tight`` branches and NVIDIA's compiler alone."""
        return {"maxnreg": self.most_registers} if tight and self.most_registers else {}


@dataclass(frozen=True)
class Tilings:
    """The tilings of an architecture, by what is done to the logits."""

    plain: Tiling
    capped: Tiling  # with a softcap

    def of(self, softcap: float) -> Tiling:
        """The tiling for logits with this softcap, or without one if it is 0."""
        return self.capped if softcap else self.plain


# Memory is busy where bandwidth times latency is in flight, for each multiprocessor:
#   A100    11 KB (2 TB/s, 600 ns, 108 multiprocessors)
#   H200    25 KB (4.8 TB/s, 700 ns, 132)
#   B200    43 KB (8 TB/s, 800 ns, 148)
#   MI300X  17 KB (5.3 TB/s, 1 us, 304)
# A thread reads 32 bytes of a tile, in two loads. With the registers that the compiler reports for
# 16-bit logits on sm_90 (32 forward, 56 backward, 64 and 88 with a softcap), 64, 36, 32 and 20 KB
# can be in flight, and in the backward as much again that is written. With 64 bytes a thread, half
# the warps would put the same bytes in flight, but with double the registers, and fewer warps would
# be left to compute while others wait. All of this holds for rows that start at multiples of 16
# bytes; forward.py says what others cost.
#
# With a softcap the threads of a program look for the largest logit of each tile, and wait for one
# another. A program of one warp has nobody to wait for: on an H200 that took 11% off the forward
# and 12% off the backward at 256,000 columns.
#
# Left alone, Triton 3.9 puts 8 bytes on a stack on sm_100 in two rare branches, where it gives a
# thread 80 registers: the gradient of 16-bit logits whose columns are not neighbours, and float64
# logits with a softcap in rows off the grid of 16 bytes.
_FOUR_WARPS = Tiling(tile_bytes=4096, num_warps=4, chunk=16)
_BLACKWELL = replace(_FOUR_WARPS, most_registers=255)
_ONE_WARP = Tiling(tile_bytes=1024, num_warps=1, chunk=64)
_AMD = Tiling(tile_bytes=8192, num_warps=4, chunk=8)  # warps of 64 threads
TILINGS = {
    "sm_80": Tilings(_FOUR_WARPS, _FOUR_WARPS),
    "sm_90": Tilings(_FOUR_WARPS, _ONE_WARP),
    "sm_100": Tilings(_BLACKWELL, _BLACKWELL),
    "gfx942": Tilings(_AMD, _AMD),
}


@functools.cache
def tilings_of(device: torch.device) -> Tilings:
    """The tilings on a device."""
    return nearest(TILINGS, architecture(device))
