"""How much of a row a program takes at once, per architecture: reasoned, fixed, and never measured at run time (same bits).

Memory is kept busy by the bytes in flight, bandwidth times latency: about 11 KB per multiprocessor on an A100 (2 TB/s, 600 ns,
108 of them), 25 KB on an H200 (4.8 TB/s, 700 ns, 132), 43 KB on a B200 (8 TB/s, 800 ns, 148), 17 KB on an MI300X (5.3 TB/s, 1
us, 304). A thread reads 32 bytes of a tile, two 16-byte loads; with the registers that the compiler reports for sm_90 (16-bit
logits: 32 forward, 56 backward, 64 and 88 with a softcap) 64, 36, 32 and 20 KB can be in flight, backward beside as much that
is written. That holds for rows that start at multiples of 16 bytes; an odd vocabulary of 16-bit logits is read 2 bytes at a
time, with up to twice the registers and exponentials (see forward.py). 64 bytes a thread put the same bytes in flight with half
the warps, for the registers double, and leave fewer to compute while others wait. Small programs, since a program's threads
meet once a tile where there is a softcap. None of this was timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.device import architecture


@dataclass(frozen=True)
class Tiling:
    tile_bytes: int  # of logits, a power of two
    num_warps: int
    chunk: int  # tiles of a row that one program of the backward takes

    def block(self, itemsize: int) -> int:
        return self.tile_bytes // itemsize


TILINGS = {
    "sm_80": Tiling(tile_bytes=4096, num_warps=4, chunk=16),
    "sm_90": Tiling(tile_bytes=4096, num_warps=4, chunk=16),
    "sm_100": Tiling(tile_bytes=4096, num_warps=4, chunk=16),
    "gfx942": Tiling(tile_bytes=8192, num_warps=4, chunk=8),  # warps of 64 threads
}
OTHERS = TILINGS["sm_90"]


def tiling_of(device: torch.device) -> Tiling:
    return TILINGS.get(architecture(device), OTHERS)
