"""Tiles of the kernels over chunks of logits, per architecture: reasoned, fixed, and never measured at run time (same bits).

A row's scores need its logits twice. A program of 1,024 threads with more than 32 registers each has a multiprocessor to itself, so
that the rows in flight are as few as they can be: 132 rows of 128,256 float32 logits are 68 MB beside 50 MB of second-level cache on
an H200, of which the second walk, backwards, should find the larger part. A thread reads 32 bytes of a tile: 32 KB in flight, where
25 KB keep an H200's memory busy. None of this was timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.device import architecture


@dataclass(frozen=True)
class RowTiling:
    columns: int  # of a tile, a power of two
    num_warps: int

    @property
    def limits(self) -> dict[str, int]:
        """All registers that 1,024 threads can have: left alone, ptxas may spill to fit a second program beside."""
        return {"maxnreg": 64} if self.num_warps == 32 else {}


ROWS = {
    "sm_80": RowTiling(4096, 16),
    "sm_90": RowTiling(8192, 32),
    "sm_100": RowTiling(8192, 32),
    "gfx942": RowTiling(4096, 16),  # warps of 64 threads, and 1,024 threads at most
}


def rows_of(device: torch.device) -> RowTiling:
    return ROWS.get(architecture(device), ROWS["sm_90"])


@dataclass(frozen=True)
class ScoringTiling:
    """Tiles of the product without logits. ``described``: tensor descriptors and as many programs as multiprocessors."""

    rows: int
    columns: int
    depth: int  # bytes
    num_warps: int
    num_stages: int
    described: bool = False


# 128 x 128 float32 numbers are 64 registers of each of 256 threads, and the softmax needs as many again beside them.
SCORING = {
    "sm_80": ScoringTiling(128, 128, 64, 8, 3),
    "sm_90": ScoringTiling(128, 128, 128, 8, 4, described=True),
    "sm_100": ScoringTiling(128, 128, 128, 8, 4, described=True),
    "gfx942": ScoringTiling(128, 128, 64, 8, 2),
}
SPLITS = 8  # of the vocabulary, whatever the batch: the order of a row's sums


def scoring_of(device: torch.device) -> ScoringTiling:
    return SCORING.get(architecture(device), SCORING["sm_80"])
