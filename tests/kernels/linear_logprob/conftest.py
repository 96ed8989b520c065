"""Small tiles for the tests of hidden states times the output head."""

import pytest
from pad_fast.kernels.linear_logprob import launch, tuning
from pad_fast.kernels.logprob import launch as logprob_launch
from pad_fast.kernels.logprob import tuning as logprob_tuning

from pad_fast.linear_logprob import memory_budget, op


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that every loop repeats.

    Chunks have 4 rows, tiles 64 columns of logits, and those of the product 16 x 32 x 16 entries.
    """
    for module in (memory_budget, op):
        monkeypatch.setattr(module, "chunk_rows", lambda vocabulary, device, dtype: 4)

    # A budget is for rows that keep scores alone.
    monkeypatch.setattr(memory_budget, "workspace", lambda *sizes, recomputed: 0)
    fused = tuning.ScoringTiling(rows=16, columns=32, depth=64, num_warps=4, num_stages=2)
    monkeypatch.setattr(
        launch, "scoring_of", lambda device: tuning.ScoringTilings(fused, fused, fused)
    )
    small = tuning.RowTilings(tuning.RowTiling(64, 4), tuning.RowTiling(64, 4))
    monkeypatch.setattr(launch, "rows_of", lambda device: small)
    tiling = logprob_tuning.Tiling(tile_bytes=1024, num_warps=4, chunk=2)
    monkeypatch.setattr(
        logprob_launch, "tilings_of", lambda device: logprob_tuning.Tilings(tiling, tiling)
    )
