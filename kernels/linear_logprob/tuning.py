"""Tiles of the kernels for hidden states times the head, for each architecture.

The numbers follow from the reasons below. They are fixed and never tried out at run time, so that
results keep their bits. None was timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.device import architecture


@dataclass(frozen=True)
class RowTiling:
    """Tiles of linear_logprob_rows, which turns rows of logits into log-probabilities."""

    columns: int  # columns of a tile, a power of two
    num_warps: int

    @property
    def limits(self) -> dict[str, int]:
        """All registers that 1,024 threads can have.

        Without a limit, ptxas may spill in order to fit a second program on a multiprocessor.
        """
        return {"maxnreg": 64} if self.num_warps == 32 else {}


# A row's gradient needs its logits twice. A program of 1,024 threads with more than 32 registers
# each has a multiprocessor to itself, so that as few rows as possible are in flight: 132 rows of
# 128,256 float32 logits are 68 MB, and an H200 has 50 MB of second-level cache. The second walk,
# which goes backwards, should find the larger part of them there. A thread reads 32 bytes of a
# tile: 32 KB are in flight, where 25 KB keep an H200's memory busy.
ROWS = {
    "sm_80": RowTiling(4096, 16),
    "sm_90": RowTiling(8192, 32),
    "sm_100": RowTiling(8192, 32),
    "gfx942": RowTiling(4096, 16),  # warps of 64 threads, and 1,024 threads at most
}


def rows_of(device: torch.device) -> RowTiling:
    """The tiling of linear_logprob_rows on a device; unknown ones are treated as sm_90."""
    return ROWS.get(architecture(device), ROWS["sm_90"])


@dataclass(frozen=True)
class ScoringTiling:
    """Tiles of linear_logprob_fwd, the product that writes no logits."""

    rows: int
    columns: int
    depth: int  # bytes of a tile along D
    num_warps: int
    num_stages: int
    # Whether tiles are fetched by tensor descriptors, and as many programs run as multiprocessors.
    described: bool = False


# 128 x 128 float32 numbers are 64 registers of each of 256 threads, and the softmax needs as many
# again.
SCORING = {
    "sm_80": ScoringTiling(128, 128, 64, 8, 3),
    "sm_90": ScoringTiling(128, 128, 128, 8, 4, described=True),
    "sm_100": ScoringTiling(128, 128, 128, 8, 4, described=True),
    "gfx942": ScoringTiling(128, 128, 64, 8, 2),
}
# Parts of the vocabulary. The number does not follow the batch, since the order of a row's sums
# follows it.
SPLITS = 8


def scoring_of(device: torch.device) -> ScoringTiling:
    """The tiling of linear_logprob_fwd on a device; unknown ones are treated as sm_80."""
    return SCORING.get(architecture(device), SCORING["sm_80"])
